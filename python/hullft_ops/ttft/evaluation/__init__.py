"""Comparing methods of test-time finetuning: evaluation, report, tuning."""
