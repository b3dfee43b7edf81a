"""Using your own vector database in place of a datastore."""

from collections.abc import Hashable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import numpy as np
import torch

from hullft_ops._extras import needed_by
from hullft_ops.ttft.store.base import Found, Queries, checked_search
from hullft_ops.ttft.store.embedding import Embedder, checked_vectors

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

Key = Hashable
_FUNCTION = "DatabaseStore.search"


class VectorDatabase(Protocol):
    """What `DatabaseStore` needs from a database of unit vectors, compared by dot product."""

    def __len__(self) -> int:
        """How many texts there are."""

    def search(self, queries: np.ndarray, k: int) -> Sequence[Sequence[Key]]:
        """Keys of the ``k`` texts nearest to each query; queries are float32 ``[B, dim]``."""

    def fetch(self, keys: Sequence[Key]) -> tuple[Sequence[str], np.ndarray]:
        """Texts and vectors, float32 ``[len(keys), dim]``, in the order of ``keys``."""


class DatabaseStore:
    """A `Store` that searches a vector database.

    It fetches and keeps what a search finds, each text once. ``texts`` and ``embeddings`` hold what
    searches have found so far; a position never changes. To search only some of the texts, pass a
    `VectorDatabase` whose ``search`` and ``len`` know only those.

    Args:
        database: where the texts are.
        embedder: the one that made its vectors.

    Raises:
        ValueError: the database is empty.
    """

    def __init__(self, database: VectorDatabase, embedder: Embedder) -> None:
        if len(database) == 0:
            raise ValueError("DatabaseStore: database is empty")
        self.embedder = embedder.name
        self.dim = embedder.dim
        self.texts: list[str] = []
        self.embeddings = torch.empty(
            0, embedder.dim, dtype=torch.float32, device="cpu"
        )
        self._database = database
        self._count = len(database)
        self._places: dict[Key, int] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return self._count

    def search(self, queries: Queries, k: int) -> Found:
        """As `Datastore.search`. TypeError and ValueError also if the database answers wrongly."""
        vectors, k = checked_search(_FUNCTION, self, queries, k)
        found = self._database.search(vectors.numpy(), k)
        counts = [len(set(keys)) for keys in found]
        if counts != [k] * len(vectors):
            wanted = f"{k} different texts for each of {len(vectors)} queries"
            raise ValueError(
                f"{_FUNCTION}: database must find {wanted}, found {counts}"
            )
        with self._lock:
            self._fetch([key for keys in found for key in keys])
        places = [[self._places[key] for key in keys] for keys in found]
        ids = torch.tensor(places, dtype=torch.int64, device="cpu")
        scores = torch.einsum("bd,bkd->bk", vectors, self.embeddings[ids])
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores, ids.gather(1, order)

    def _fetch(self, keys: Sequence[Key]) -> None:
        new = [key for key in dict.fromkeys(keys) if key not in self._places]
        if not new:
            return
        texts, vectors = self._database.fetch(new)
        name = f"{self.embedder} in the database"
        checked = checked_vectors(_FUNCTION, name, self.dim, texts, np.asarray(vectors))
        if len(texts) != len(new):
            raise ValueError(
                f"{_FUNCTION}: database must give {len(new)} texts, gave {len(texts)}"
            )
        # An interrupted fetch may have left texts without a place, but no place without a text.
        known = len(self._places)
        self.texts[known:] = texts
        self.embeddings = torch.cat(
            [self.embeddings[:known], torch.from_numpy(checked)]
        )
        self._places |= {key: known + place for place, key in enumerate(new)}


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
        must = f"QdrantDatabase: collection {collection!r} must"
        if not isinstance(vectors, models.VectorParams):
            names = ", ".join(map(repr, vectors or {})) or "nothing"
            raise ValueError(
                f"{must} have one unnamed vector a point, got vectors named {names}"
            )
        distance = vectors.distance
        if distance not in (models.Distance.DOT, models.Distance.COSINE):
            raise ValueError(
                f"{must} compare its vectors by Dot or Cosine, got {distance.value}"
            )

    def __len__(self) -> int:
        return self._client.count(self._collection, exact=True).count

    def search(
        self, queries: np.ndarray, k: int
    ) -> Sequence[Sequence[int | str | UUID]]:
        """The ids of the ``k`` points nearest to each query."""
        requests = [self._request(query=query.tolist(), limit=k) for query in queries]
        found = self._client.query_batch_points(self._collection, requests)
        return [[point.id for point in response.points] for response in found]

    def fetch(
        self, keys: Sequence[int | str | UUID]
    ) -> tuple[Sequence[str], np.ndarray]:
        """Texts and vectors of the points with these ids. ValueError if one is gone or textless."""
        records = self._client.retrieve(
            self._collection,
            list(keys),
            with_payload=[self._text_field],
            with_vectors=True,
        )
        points = {record.id: record for record in records}
        texts: list[str] = []
        for key in keys:
            payload = points[key].payload if key in points else None
            text = (payload or {}).get(self._text_field)
            if not isinstance(text, str):
                point = f"QdrantDatabase: point {key} of {self._collection}"
                raise ValueError(
                    f"{point} must have a string {self._text_field!r}, got {text!r}"
                )
            texts.append(text)
        return texts, np.asarray([points[key].vector for key in keys], dtype=np.float32)
