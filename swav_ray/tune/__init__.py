"""Many runs: a space of configurations, a study that remembers, a leaderboard that ranks."""
