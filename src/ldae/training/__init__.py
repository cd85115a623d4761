"""Pre-training: recipes, the Accelerate loop, checkpoints."""
