"""Texts with their embeddings: stores, embedders and sources. Imports ``ttft.model`` at most."""
