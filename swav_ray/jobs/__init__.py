"""Commands of ours as jobs of a Ray cluster elsewhere: what travels, submitting it, and watching it."""
