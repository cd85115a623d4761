"""A page to look at a checkpoint with: what it shows (exhibit, neighbours), how (page), and as a Space (space)."""
