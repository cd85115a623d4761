"""A page to explore a checkpoint: the pictures (model, neighbours), the page (page), and a Space of it (space)."""
