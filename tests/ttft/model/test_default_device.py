"""A default device, such as the user's GPU, is not where a datastore lies: here, one without
storage, on which whatever lands by mistake cannot be used."""

import torch

from hullft_ops.ttft.retrieval.methods import Random
from hullft_ops.ttft.store.external import DatabaseStore


class Database:
    def __init__(self, texts, embedder) -> None:
        self._texts, self._vectors = texts, embedder.encode(texts)

    def __len__(self) -> int:
        return len(self._texts)

    def search(self, vectors, k):
        order = (-vectors @ self._vectors.T).argsort(axis=1)[:, :k]
        return order.tolist()

    def fetch(self, keys):
        return [self._texts[key] for key in keys], self._vectors[keys]


def test_stores_are_searched(store, texts, embedder):
    queries, database = embedder.encode(texts[:2]), Database(texts, embedder)
    with torch.device("meta"):
        scores, ids = store.search(queries, 3)
        found_scores, found_ids = DatabaseStore(database, embedder).search(queries, 3)
    assert {
        tensor.device.type for tensor in (scores, ids, found_scores, found_ids)
    } == {"cpu"}
    torch.testing.assert_close(scores, found_scores)


def test_random_draws_where_the_candidates_are(store):
    candidates = torch.arange(20)[None]
    with torch.device("meta"):
        selection = Random()(store.embeddings, candidates, store.embeddings[:1], 4)
    assert {tensor.device.type for tensor in selection} == {"cpu"}
    assert len(set(selection.indices[0].tolist())) == 4


def test_short_texts_leave_the_pool(gpt2, make, store):
    finetuner = make(gpt2)
    tokens = finetuner._selector._tokens
    first = finetuner.select("the cat sat").indices[0]
    finetuner._selector._tokens = lambda i: [1] if i == first else tokens(i)
    with torch.device("meta"):
        support = finetuner.select("the cat sat")
    assert first not in support.indices
