"""What an embedder is asked for, and whether two datastores are the same."""

from contextlib import contextmanager

import pytest
import torch


def counted(embedder):
    """The texts that it embeds from now on."""
    encode, texts = embedder.encode, []

    def encode_and_count(batch):
        texts.extend(batch)
        return encode(batch)

    embedder.encode = encode_and_count
    return texts


@contextmanager
def interrupted(embedder, *, after):
    """Interrupts the body when so many texts are embedded."""
    encode, texts = embedder.encode, counted(embedder)
    encode_and_count = embedder.encode

    def encode_some(batch):
        if len(texts) >= after:
            raise KeyboardInterrupt

        return encode_and_count(batch)

    embedder.encode = encode_some
    with pytest.raises(KeyboardInterrupt):
        yield
    embedder.encode = encode


def assert_same_stores(store, other):
    assert list(store.texts) == list(other.texts)
    assert list(store.sources) == list(other.sources)
    assert [*store.documents()] == [*other.documents()]
    assert store.identity == other.identity
    assert store.info.source == other.info.source
    assert torch.equal(store.embeddings, other.embeddings)
    for query in store.texts[:5]:
        assert torch.equal(store.words.search(query, 9), other.words.search(query, 9))
