"""A collection of Qdrant is a store; its client's local mode is a real one."""

import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient, models

from hullft_ops.ttft.store.base import MemoryStore
from hullft_ops.ttft.store.qdrant import QdrantStore


@pytest.fixture
def client():
    return QdrantClient(":memory:")


def collection(client, embedder, texts, distance=models.Distance.DOT, scale=1):
    client.create_collection(
        "passages", models.VectorParams(size=embedder.dim, distance=distance)
    )
    vectors = scale * embedder.encode(texts)
    points = []

    for text, vector in zip(texts, vectors, strict=True):
        point = models.PointStruct(
            id=100 + len(points),
            vector=vector.tolist(),
            payload={"text": text},
        )
        points.append(point)

    client.upsert("passages", points)


@pytest.mark.parametrize(
    ("distance", "scale"),
    [
        (models.Distance.DOT, 1),
        (models.Distance.COSINE, 3),
    ],
)
def test_it_finds_what_a_store_in_memory_finds(
    client, embedder, texts, distance, scale
):
    collection(client, embedder, texts, distance, scale)
    store = QdrantStore(client, "passages", embedder)
    memory = MemoryStore(texts, embedder.encode(texts), embedder.name)
    queries = embedder.encode(["the cat sat", "red house", "dog dog park"])
    expected, _ = memory.search(queries, 7)
    scores, positions = store.search(queries, 7)

    np.testing.assert_allclose(scores, expected, rtol=1e-5)

    embeddings = torch.from_numpy(embedder.encode(store.texts))
    torch.testing.assert_close(store.embeddings, embeddings)

    for query, row, score in zip(queries, positions, scores, strict=True):
        products = embeddings[row] @ torch.from_numpy(query)
        torch.testing.assert_close(score, products)

    assert len(store) == 60
    assert store.dim == 24
    assert store.embedder == "hashing"


def test_a_position_never_changes(client, embedder, texts):
    collection(client, embedder, texts)
    store = QdrantStore(client, "passages", embedder)
    query = embedder.encode(["the cat sat"])
    other_query = embedder.encode(["red house"])

    _, first = store.search(query, 9)
    before = [store.texts[i] for i in first[0].tolist()]
    store.search(other_query, 30)
    _, again = store.search(query, 9)

    assert torch.equal(first, again)
    assert [store.texts[i] for i in again[0].tolist()] == before
    assert len(set(store.texts)) == len(store.texts) == len(store.embeddings)


def test_other_collections_are_refused(client, embedder):
    size = models.VectorParams(size=24, distance=models.Distance.DOT)
    client.create_collection("named", {"title": size, "body": size})
    far = models.VectorParams(size=24, distance=models.Distance.EUCLID)
    client.create_collection("far", far)
    client.create_collection("empty", size)

    messages = {
        "named": "must have one unnamed vector .* got distance of named vectors",
        "far": "must have .* distance Dot or Cosine, got distance Euclid",
        "empty": "is empty",
    }

    for name, message in messages.items():
        with pytest.raises(ValueError, match=f"^QdrantStore: {name} {message}"):
            QdrantStore(client, name, embedder)


def test_points_without_text_and_bad_searches_are_refused(client, embedder, texts):
    collection(client, embedder, texts)
    store = QdrantStore(client, "passages", embedder, text_field="body")
    query = embedder.encode(["cat"])

    with pytest.raises(ValueError, match="a point must have a str body"):
        store.search(query, 3)

    assert store.texts == []

    with pytest.raises(ValueError, match="k is 61, the store has 60 texts"):
        store.search(query, 61)
