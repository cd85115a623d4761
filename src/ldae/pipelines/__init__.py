"""Generating and denoising images, as a diffusers pipeline."""
