"""Comparing methods on held-out prompts. Imports all of ``ttft`` but ``scale``."""
