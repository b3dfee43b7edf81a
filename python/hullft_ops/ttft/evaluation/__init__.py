"""Comparing methods on held-out prompts."""
