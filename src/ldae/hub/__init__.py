"""Sharing on the Hub: remote code, model cards and uploads."""
