"""Indexing, evaluation and search with the workers of a Ray cluster, or of one machine."""
