"""Every store answers a search alike: exactly, nearest first, and on ties the lower position."""

import numpy as np
import pytest
import torch

from hullft_ops.ttft.store.base import MemoryStore
from hullft_ops.ttft.store.datastore import Datastore


def unit(count, dim=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


class Fixed:
    """An embedder of texts that are numbers of rows."""

    def __init__(self, rows):
        self.name = "fixed"
        self.dim = rows.shape[1]
        self.rows = rows

    def encode(self, texts):
        return self.rows[[int(text) for text in texts]]


def numbers(rows):
    return [str(i) for i in range(len(rows))]


def in_memory(rows, path):
    return MemoryStore(numbers(rows), rows, "fixed")


def on_disk(rows, path):
    return Datastore.build(numbers(rows), Fixed(rows), path / "store")


@pytest.fixture(params=[in_memory, on_disk])
def make(request, tmp_path):
    return lambda rows: request.param(rows, tmp_path)


def test_it_is_exact(make):
    rows = unit(500)
    queries = unit(40, seed=1)
    scores, positions = make(rows).search(queries, 20)

    assert scores.dtype == torch.float32
    assert positions.dtype == torch.int64

    products = queries.astype(np.float64) @ rows.T.astype(np.float64)
    expected = np.argsort(-products, axis=1)[:, :20]

    assert np.array_equal(positions, expected)

    best = np.take_along_axis(products, expected, axis=1)
    np.testing.assert_allclose(scores, best, rtol=0, atol=1e-6)


def test_vectors_are_those_of_the_positions(make):
    rows = unit(30)
    vectors = make(rows).vectors(torch.tensor([7, 0, 7]))

    assert torch.equal(vectors, torch.from_numpy(rows[[7, 0, 7]]))


def test_of_equal_scores_the_lower_position_comes_first(make):
    rows = unit(300)
    rows[50:250] = rows[7]
    store = make(rows)

    for k in (1, 5, 120, 201):
        _, positions = store.search(rows[7:8], k)
        assert positions.tolist() == [[7, *range(50, 49 + k)]]


def test_a_query_finds_the_same_in_any_batch(make):
    store = make(unit(700, 48))
    queries = unit(50, 48, seed=1)
    scores, positions = store.search(queries, 30)
    for i in range(50):
        single, alone = store.search(queries[i : i + 1], 30)

        assert torch.equal(single[0], scores[i])
        assert torch.equal(alone[0], positions[i])


QUERY = unit(1, 24)
WRONG = r"queries must be finite and have shape \[B, 24\], got "
BAD = [
    (QUERY[0], 1, ValueError, WRONG + r"\[24\]"),
    (QUERY[:, :5], 1, ValueError, WRONG + r"\[1, 5\]"),
    (QUERY * np.nan, 1, ValueError, WRONG),
    (QUERY, 61, ValueError, r"k must be in 1\.\.60, got 61"),
]


@pytest.mark.parametrize(("queries", "k", "error", "message"), BAD)
def test_bad_queries_are_refused(texts, embedder, queries, k, error, message):
    store = MemoryStore(texts, embedder.encode(texts), embedder.name)
    with pytest.raises(error, match=f"^MemoryStore.search: {message}"):
        store.search(queries, k)


@pytest.mark.parametrize(
    ("texts", "embeddings", "error", "message"),
    [
        ([], unit(0), ValueError, "texts is empty"),
        ("ab", unit(2), TypeError, "texts must be a sequence of str, got one str"),
        (["a", 3], unit(2), TypeError, r"texts\[1\] must be a str, got int"),
        (["a", "\ud800"], unit(2), ValueError, r"texts\[1\] must be valid Unicode"),
        (
            ["a"],
            unit(2),
            ValueError,
            r"float32 \[1, 16\], got ndarray of float32 \[2, 16\]",
        ),
        (["a"], unit(1).astype(float), ValueError, r"of float64 \[1, 16\]"),
        (["a"], np.nan * unit(1), ValueError, "unit vectors, row 0 has norm nan"),
    ],
)
def test_what_makes_no_store_is_refused(texts, embeddings, error, message):
    with pytest.raises(error, match=f"^MemoryStore: .*{message}"):
        MemoryStore(texts, embeddings, "fixed")


def test_the_identity_is_of_all_texts_and_vectors(tmp_path):
    rows = unit(300)
    store = in_memory(rows, tmp_path)
    other = rows.copy()
    other[299] = other[298]

    assert on_disk(rows, tmp_path).identity == store.identity
    assert in_memory(other, tmp_path).identity != store.identity

    identities = {store.identity}
    for texts in (["ab", "c"], ["a", "bc"], ["b", "ac"], ["abc", ""]):
        store = MemoryStore(texts, rows[:2], "fixed")
        identities.add(store.identity)

    assert len(identities) == 5
