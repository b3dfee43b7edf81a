"""A user's own database in place of a datastore; Qdrant's local mode is a real one."""

import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient, models

from hullft_ops.ttft import TestTimeFinetuner
from hullft_ops.ttft.store import external as vector_database
from hullft_ops.ttft.store.external import DatabaseStore, QdrantDatabase


@pytest.fixture
def client(texts, embedder) -> QdrantClient:
    client = QdrantClient(":memory:")
    client.create_collection(
        "passages", models.VectorParams(size=embedder.dim, distance=models.Distance.DOT)
    )
    points = [
        models.PointStruct(id=100 + i, vector=vector.tolist(), payload={"text": text})
        for i, (text, vector) in enumerate(
            zip(texts, embedder.encode(texts), strict=True)
        )
    ]
    client.upsert("passages", points)
    return client


@pytest.fixture
def database_store(client, embedder) -> DatabaseStore:
    return DatabaseStore(QdrantDatabase(client, "passages"), embedder)


def test_qdrant_finds_what_the_datastore_finds(store, database_store, embedder):
    queries = embedder.encode(["the cat sat", "red house", "dog dog park"])
    wanted, positions = store.search(queries, 7)
    scores, ids = database_store.search(queries, 7)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)
    products = torch.from_numpy(queries) @ store.embeddings.T
    for row, (found, query) in enumerate(zip(ids.tolist(), products, strict=True)):
        texts = [database_store.texts[i] for i in found]
        assert sorted(
            query[[list(store.texts).index(t) for t in texts]].tolist()
        ) == pytest.approx(sorted(query[positions[row]].tolist()))
    torch.testing.assert_close(
        database_store.embeddings,
        torch.from_numpy(embedder.encode(database_store.texts)),
    )


def test_what_was_fetched_is_not_fetched_again(database_store, embedder, monkeypatch):
    queries = embedder.encode(["the cat sat"])
    first = database_store.search(queries, 9)
    monkeypatch.setattr(QdrantDatabase, "fetch", None)
    again = database_store.search(queries, 9)
    assert torch.equal(first[1], again[1])
    assert len(database_store.texts) == 9
    assert len(database_store) == 60


def test_a_fetch_that_is_interrupted_leaves_no_text_in_anothers_place(
    database_store, embedder, monkeypatch
):
    first, second = embedder.encode(["the cat sat"]), embedder.encode(["red house"])

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vector_database.torch, "cat", interrupt)
        with pytest.raises(KeyboardInterrupt):
            database_store.search(first, 4)
    for queries in (second, first):
        scores, ids = database_store.search(queries, 7)
        texts = [database_store.texts[i] for i in ids[0].tolist()]
        products = torch.from_numpy(queries @ embedder.encode(texts).T)
        torch.testing.assert_close(scores, products)


def test_a_finetuner_takes_it(gpt2, tokenizer, store, database_store, embedder):
    prompt = "the cat sat on the mat"
    options = {"n_select": 6, "pool_size": 20}
    own = TestTimeFinetuner(gpt2, tokenizer, store, embedder, **options).select(prompt)
    other = TestTimeFinetuner(gpt2, tokenizer, database_store, embedder, **options)
    support = other.select(prompt)
    assert [database_store.texts[i] for i in support.indices] == [
        store.texts[i] for i in own.indices
    ]
    assert support.counts == own.counts
    with other.adapted(prompt) as report:
        assert report.optimizer_steps == 6


def test_named_vectors_are_refused(client):
    size = models.VectorParams(size=24, distance=models.Distance.DOT)
    client.create_collection("named", {"title": size, "body": size})
    client.create_collection(
        "sparse", {}, sparse_vectors_config={"s": models.SparseVectorParams()}
    )
    message = "must have one unnamed vector a point, got vectors named"
    with pytest.raises(
        ValueError, match=f"collection 'named' {message} 'title', 'body'"
    ):
        QdrantDatabase(client, "named")
    with pytest.raises(ValueError, match=f"collection 'sparse' {message} nothing"):
        QdrantDatabase(client, "sparse")


@pytest.mark.parametrize(
    "distance", [models.Distance.EUCLID, models.Distance.MANHATTAN]
)
def test_a_distance_that_is_no_product_is_refused(client, distance):
    client.create_collection("far", models.VectorParams(size=24, distance=distance))
    message = f"collection 'far' must compare its vectors by Dot or Cosine, got {distance.value}"
    with pytest.raises(ValueError, match=message):
        QdrantDatabase(client, "far")


def test_cosine_is_taken(client, embedder):
    client.create_collection(
        "cosine", models.VectorParams(size=24, distance=models.Distance.COSINE)
    )
    vector = embedder.encode(["the cat sat"])[0]
    client.upsert(
        "cosine",
        [models.PointStruct(id=1, vector=(3 * vector).tolist(), payload={"text": "a"})],
    )
    store = DatabaseStore(QdrantDatabase(client, "cosine"), embedder)
    scores, _ = store.search(vector[None], 1)
    assert scores.item() == pytest.approx(1)


class Answering:
    """A database that gives what it is told to."""

    def __init__(self, found=([0, 1],), texts=("a", "b"), vectors=None) -> None:
        self.found, self.texts = found, texts
        self.vectors = np.eye(2, 24, dtype=np.float32) if vectors is None else vectors

    def __len__(self) -> int:
        return 2

    def search(self, queries, k):
        return self.found

    def fetch(self, keys):
        return self.texts, self.vectors


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ({"found": [[0]]}, ValueError, r"must find 2 different texts .* found \[1\]"),
        (
            {"found": [[0, 0]]},
            ValueError,
            r"must find 2 different texts .* found \[1\]",
        ),
        ({"texts": ["a"]}, ValueError, r"must give shape \(1, 24\), got \(2, 24\)"),
        (
            {"vectors": np.eye(2, 24)},
            TypeError,
            "must give a float32 NumPy array, got float64",
        ),
        (
            {"vectors": np.ones((2, 24), np.float32)},
            ValueError,
            "must give unit vectors",
        ),
    ],
)
def test_a_database_that_answers_otherwise_is_refused(
    embedder, answers, error, message
):
    store = DatabaseStore(Answering(**answers), embedder)
    with pytest.raises(error, match=message):
        store.search(embedder.encode(["a"]), 2)


def test_points_without_text_and_bad_searches_are_refused(client, embedder):
    store = DatabaseStore(
        QdrantDatabase(client, "passages", text_field="body"), embedder
    )
    with pytest.raises(
        ValueError, match="of passages must have a string 'body', got None"
    ):
        store.search(embedder.encode(["cat"]), 3)
    with pytest.raises(ValueError, match="k is 61, the store has 60 texts"):
        store.search(embedder.encode(["cat"]), 61)
    client.delete_collection("passages")
    client.create_collection(
        "passages", models.VectorParams(size=24, distance=models.Distance.DOT)
    )
    with pytest.raises(ValueError, match="DatabaseStore: database is empty"):
        DatabaseStore(QdrantDatabase(client, "passages"), embedder)
