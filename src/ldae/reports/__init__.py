"""Pictures and documents of runs and results."""
