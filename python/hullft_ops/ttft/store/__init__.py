"""Texts with their embeddings: stores, the corpora they come from, and how they are cut."""
