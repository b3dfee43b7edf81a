"""Comparing methods on held-out prompts.

Configurations, the evaluator, results files, statistics, reports and tuning. Imports the finetuner
and what stands below it.
"""
