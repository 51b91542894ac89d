"""One run: the loop, its state and how it is spread over workers."""
