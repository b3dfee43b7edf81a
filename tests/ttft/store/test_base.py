"""`Store`: whatever has its members serves the finetuner."""

import numpy as np
import pytest
import torch

from hullft_ops.ttft import Store, TestTimeFinetuner
from hullft_ops.ttft.store.base import checked_search


class ListStore:
    """The least that a store can be."""

    def __init__(self, texts, embedder):
        self.texts = texts
        self.embedder = embedder.name
        self.dim = embedder.dim
        self.embeddings = torch.from_numpy(embedder.encode(texts))

    def __len__(self):
        return len(self.texts)

    def search(self, queries, k):
        vectors, k = checked_search("ListStore.search", self, queries, k)
        return tuple((vectors @ self.embeddings.T).topk(k))


@pytest.fixture
def plain(store, embedder) -> Store:
    return ListStore(list(store.texts), embedder)


def test_a_plain_object_serves_the_finetuner(gpt2, tokenizer, store, plain, embedder):
    options = {"n_select": 6, "pool_size": 20}
    own = TestTimeFinetuner(gpt2, tokenizer, store, embedder, **options)
    other = TestTimeFinetuner(gpt2, tokenizer, plain, embedder, **options)
    prompt = "the cat sat on the mat"
    assert other.select(prompt) == own.select(prompt)
    with other.adapted(prompt) as report:
        assert report.optimizer_steps == 6


@pytest.mark.parametrize(
    ("queries", "k", "error", "message"),
    [
        (
            np.zeros((1, 5), np.float32),
            1,
            ValueError,
            r"must have shape \[B, 24\], got \[1, 5\]",
        ),
        (
            np.zeros((1, 24), np.float64),
            1,
            TypeError,
            "must be float32, got torch.float64",
        ),
        (np.full((1, 24), np.nan, np.float32), 1, ValueError, "queries must be finite"),
        (
            np.zeros((1, 24), np.float32),
            61,
            ValueError,
            "k is 61, the store has 60 texts",
        ),
    ],
)
def test_a_search_names_itself_and_what_came(plain, queries, k, error, message):
    with pytest.raises(error, match=f"ListStore.search: .*{message}"):
        plain.search(queries, k)
