"""A `Store` over a collection of the vector database Qdrant."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hullft_ops.ttft.embedding import Embedder, checked_vectors
from hullft_ops.ttft.store.base import checked_search

if TYPE_CHECKING:
    from qdrant_client import QdrantClient


class QdrantStore:
    """Searches a collection, and keeps each text and vector that a search returns.

    ``texts`` and ``embeddings`` hold what searches have returned; a position never changes.

    Args:
        client: a `qdrant_client.QdrantClient`.
        collection: its name. Each point has one unnamed vector, compared by dot product or cosine.
        embedder: the one that made the vectors.
        text_field: the field of a point's payload that holds the text.

    Raises:
        ValueError: the collection is empty, has several vectors a point, or another distance.
    """

    def __init__(
        self,
        client: "QdrantClient",
        collection: str,
        embedder: Embedder,
        *,
        text_field: str = "text",
    ) -> None:
        vectors = client.get_collection(collection).config.params.vectors
        distance = getattr(vectors, "distance", "of named vectors")
        if distance not in ("Dot", "Cosine"):
            raise ValueError(
                f"QdrantStore: {collection} must have one unnamed vector a point and distance Dot "
                f"or Cosine, got distance {distance}"
            )
        self._client = client
        self._collection = collection
        self._text_field = text_field
        self._count = client.count(collection, exact=True).count
        if self._count == 0:
            raise ValueError(f"QdrantStore: {collection} is empty")
        self._positions: dict[Any, int] = {}
        self.embedder = embedder.name
        self.dim = embedder.dim
        self.identity = f"qdrant {collection} of {self._count} points"
        self.texts: list[str] = []
        self.embeddings = torch.empty(0, embedder.dim)

    def __len__(self) -> int:
        return self._count

    def search(self, queries: np.ndarray | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `Datastore.search`. ValueError also if a point has no text."""
        vectors, k = checked_search("QdrantStore.search", self, queries, k)
        positions = torch.tensor([self._nearest(query, k) for query in vectors])
        rows = self.embeddings[positions]
        scores = torch.einsum("bd,bkd->bk", torch.from_numpy(vectors), rows)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores, positions.gather(1, order)

    def _nearest(self, query: np.ndarray, k: int) -> list[int]:
        points = self._client.query_points(
            self._collection, query.tolist(), limit=k, with_vectors=True
        ).points
        new = [point for point in points if point.id not in self._positions]
        texts: list[Any] = [
            (point.payload or {}).get(self._text_field) for point in new
        ]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"QdrantStore: a point must have a str {self._text_field}")
        rows = np.asarray([point.vector for point in new], np.float32)
        if new:
            checked_vectors(
                f"the vectors of {self._collection}", rows, count=len(new), dim=self.dim
            )
            self.embeddings = torch.cat([self.embeddings, torch.from_numpy(rows)])
        for point, text in zip(new, texts, strict=True):
            self._positions[point.id] = len(self.texts)
            self.texts.append(text)
        return sorted(self._positions[point.id] for point in points)
