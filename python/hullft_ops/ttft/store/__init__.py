"""Texts and their embeddings: the `Store` contract, datastores, vector databases, embedders and the
sources of texts. Imports ``ttft.model`` at most.
"""
