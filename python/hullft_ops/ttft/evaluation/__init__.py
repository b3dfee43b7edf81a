"""Comparing methods on held-out prompts: evaluation, statistics, reports, tuning."""
