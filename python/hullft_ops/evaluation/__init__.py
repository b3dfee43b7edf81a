"""Comparing methods and settings of test-time finetuning on held-out prompts."""
