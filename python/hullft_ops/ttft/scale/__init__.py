"""Many workers: indexing, searching and evaluating with Ray.

Imports ``ttft.evaluation`` and what stands below it.
"""
