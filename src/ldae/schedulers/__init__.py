"""The noise schedules as a diffusers scheduler."""
