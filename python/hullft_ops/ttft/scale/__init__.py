"""Indexing, evaluation and search by the workers of a Ray cluster, or of one machine."""
