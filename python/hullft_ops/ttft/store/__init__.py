"""Texts and their embeddings.

The `Store` contract, the datastore on disk (its format, writing, building and search), vector
databases behind the contract, embedders, and the sources that texts are read from. Imports
``ttft.model`` at most.
"""
