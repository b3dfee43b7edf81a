"""`MemoryStore`: searched as a datastore is, and refused where a datastore could not be built."""

import sys

import numpy as np
import pytest
import torch

from hullft_ops.ttft import Datastore, MemoryStore, TestTimeFinetuner
from hullft_ops.ttft.store import base

COUNT, DIM = 300, 24


class Given:
    """Random unit vectors by the number that is the text; every third equals the one before."""

    name, dim = "given", DIM

    def encode(self, texts):
        vectors = np.random.default_rng(0).normal(size=(COUNT, DIM))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[2::3] = vectors[1::3]
        return vectors.astype(np.float32)[[int(text) for text in texts]]


TEXTS = [str(number) for number in range(COUNT)]


@pytest.mark.parametrize("block", [7, 1 << 14])
@pytest.mark.parametrize("k", [1, 2, 50, COUNT])
def test_a_search_equals_the_datastores(k, block, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_BLOCK_ROWS", block)
    stored = Datastore.build(TEXTS, Given(), tmp_path / "store", progress=False)
    held = MemoryStore(TEXTS, Given().encode(TEXTS), "given")
    queries = np.random.default_rng(1).normal(size=(20, DIM)).astype(np.float32)
    queries = np.concatenate([queries, stored.embeddings[:20].numpy()])
    scores, ids = held.search(queries, k)
    wanted, places = stored.search(queries, k)
    assert torch.equal(ids, places)
    assert (scores.dtype, ids.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-6)


def test_it_needs_neither_faiss_nor_arrow(monkeypatch):
    for library in ("faiss", "datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, library, None)
    held = MemoryStore(TEXTS, Given().encode(TEXTS), "given")
    _, ids = held.search(held.embeddings[5:6], 2)
    assert ids.tolist() == [[4, 5]]


def test_it_serves_the_finetuner(gpt2, tokenizer, store, embedder, bits):
    held = MemoryStore(list(store.texts), store.embeddings, embedder.name)
    options = {"n_select": 6, "pool_size": 20}
    own = TestTimeFinetuner(gpt2, tokenizer, store, embedder, **options)
    other = TestTimeFinetuner(gpt2, tokenizer, held, embedder, **options)
    prompt = "the cat sat on the mat"
    assert other.select(prompt).indices == own.select(prompt).indices
    before = bits(gpt2)
    with other.adapted(prompt) as report:
        assert report.optimizer_steps == 6
        assert before.changed()
    assert before.changed() == set()


def test_another_embedder_is_refused(gpt2, tokenizer, store, embedder):
    held = MemoryStore(list(store.texts), store.embeddings, "another")
    with pytest.raises(
        ValueError, match="is hashing of dim 24, the datastore's is another"
    ):
        TestTimeFinetuner(gpt2, tokenizer, held, embedder)


UNIT = np.eye(3, 4, dtype=np.float32)


@pytest.mark.parametrize(
    ("texts", "embeddings", "error", "message"),
    [
        ("abc", UNIT, TypeError, "texts must be a sequence of str, got one str"),
        (["a", "b", 3], UNIT, TypeError, r"texts\[2\] must be a str, got int"),
        (
            ["a", "b", "c"],
            UNIT.tolist(),
            TypeError,
            "embeddings must be .*Tensor, got list",
        ),
        ([], UNIT[:0], ValueError, "texts is empty"),
        (
            ["a", "b"],
            UNIT,
            ValueError,
            r"must have shape \[2, dim\] for 2 texts, got \[3, 4\]",
        ),
        (
            ["a"],
            UNIT[0],
            ValueError,
            r"must have shape \[1, dim\] for 1 texts, got \[4\]",
        ),
        (
            ["a", "b", "c"],
            UNIT.astype("f8"),
            TypeError,
            "must be float32, got torch.float64",
        ),
        (
            ["a", "b", "c"],
            UNIT * 2,
            ValueError,
            "must be unit vectors, row 0 has norm 2",
        ),
        (
            ["a", "b", "c"],
            UNIT * np.nan,
            ValueError,
            "must be unit vectors, row 0 has norm nan",
        ),
        (
            ["a"],
            torch.empty(1, 4, device="meta"),
            ValueError,
            "must be on the CPU, got meta",
        ),
    ],
)
def test_what_it_cannot_hold_is_named(texts, embeddings, error, message):
    with pytest.raises(error, match=f"MemoryStore: .*{message}"):
        MemoryStore(texts, embeddings, "given")


def test_it_takes_texts_from_an_iterator_and_names_a_wrong_name():
    assert MemoryStore(iter("abc"), UNIT, "given").texts == ("a", "b", "c")
    with pytest.raises(
        TypeError, match="MemoryStore: embedder_name must be a str, got object"
    ):
        MemoryStore(["a", "b", "c"], UNIT, object())


def test_a_wrong_search_is_refused():
    held = MemoryStore(["a", "b", "c"], UNIT, "given")
    with pytest.raises(
        TypeError, match="queries must be a float32 NumPy array or .*, got str"
    ):
        held.search("a", 1)
    with pytest.raises(
        ValueError, match="MemoryStore.search: k is 4, the store has 3 texts"
    ):
        held.search(UNIT, 4)
