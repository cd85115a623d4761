"""Sharing: remote code, model cards, and pushing to the Hub."""
