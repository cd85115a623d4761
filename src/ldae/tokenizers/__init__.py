"""Fitting and training of latent tokenizers. What a fitted one is, and how it is used, is in ldae.models."""
