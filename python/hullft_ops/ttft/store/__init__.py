"""Texts and their embeddings.

The `Store` contract, the datastore on disk (its format, writing, building and search), vector
databases behind the contract, embedders, and the sources of texts. Imports ``ttft.model`` at most.
"""
