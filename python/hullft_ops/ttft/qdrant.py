"""Qdrant as a `VectorDatabase`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from hullft_ops._extras import needed_by

if TYPE_CHECKING:
    from qdrant_client import QdrantClient


class QdrantDatabase:
    """A collection of a Qdrant server, or of its client's local mode.

    Args:
        client: a `qdrant_client.QdrantClient`.
        collection: its name. Each point has one unnamed vector, compared by dot product or cosine.
        text_field: the field of a point's payload that holds the text.

    Raises:
        ImportError: qdrant-client is not installed.
        ValueError: the collection has named vectors, only sparse ones, or another distance.
    """

    def __init__(
        self, client: "QdrantClient", collection: str, *, text_field: str = "text"
    ) -> None:
        with needed_by("QdrantDatabase", "qdrant"):
            from qdrant_client import models
        self._client = client
        self._collection = collection
        self._text_field = text_field
        self._request = models.QueryRequest
        vectors = client.get_collection(collection).config.params.vectors
        if not isinstance(vectors, models.VectorParams):
            raise ValueError(
                f"QdrantDatabase: collection {collection!r} must have one unnamed vector a point, "
                f"got vectors named {', '.join(map(repr, vectors or {})) or 'nothing'}"
            )
        if vectors.distance not in (models.Distance.DOT, models.Distance.COSINE):
            raise ValueError(
                f"QdrantDatabase: collection {collection!r} must compare its vectors by Dot or "
                f"Cosine, got {vectors.distance.value}"
            )

    def __len__(self) -> int:
        """How many points the collection has."""
        return self._client.count(self._collection, exact=True).count

    def search(self, queries: np.ndarray, k: int) -> Sequence[Sequence[int | str | UUID]]:
        """The ids of the ``k`` points nearest to each query."""
        requests = [self._request(query=query.tolist(), limit=k) for query in queries]
        found = self._client.query_batch_points(self._collection, requests)
        return [[point.id for point in response.points] for response in found]

    def fetch(self, keys: Sequence[int | str | UUID]) -> tuple[Sequence[str], np.ndarray]:
        """Texts and vectors of the points with these ids, in their order.

        Raises:
            ValueError: a point is gone, or has no text.
        """
        records = self._client.retrieve(
            self._collection, list(keys), with_payload=[self._text_field], with_vectors=True
        )
        points = {record.id: record for record in records}
        texts, vectors = [], []
        for key in keys:
            payload = points[key].payload if key in points else None
            text = (payload or {}).get(self._text_field)
            if not isinstance(text, str):
                raise ValueError(
                    f"QdrantDatabase: point {key} of {self._collection} must have a string "
                    f"{self._text_field!r}, got {text!r}"
                )
            texts.append(text)
            vectors.append(points[key].vector)
        return texts, np.asarray(vectors, dtype=np.float32)
