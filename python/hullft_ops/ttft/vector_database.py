"""Using your own vector database in place of a datastore."""

from collections.abc import Hashable, Sequence
from threading import Lock
from typing import Protocol

import numpy as np
import torch

from hullft_ops.ttft.embedding import Embedder, encode_checked
from hullft_ops.ttft.store_contract import checked_search

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
        self.embeddings = torch.empty(0, embedder.dim, dtype=torch.float32, device="cpu")
        self._database = database
        self._count = len(database)
        self._places: dict[Key, int] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return self._count

    def search(
        self, queries: np.ndarray | torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Datastore.search`; scores are dot products with the database's vectors.

        Raises:
            TypeError, ValueError: as `Datastore.search`, or the database answers wrongly.
        """
        vectors, k = checked_search(_FUNCTION, self, queries, k)
        found = self._database.search(vectors.numpy(), k)
        if [len(set(keys)) for keys in found] != [k] * len(vectors):
            raise ValueError(
                f"{_FUNCTION}: database must find {k} different texts for each of "
                f"{len(vectors)} queries, found {[len(set(keys)) for keys in found]}"
            )
        with self._lock:
            self._fetch(list(dict.fromkeys(key for keys in found for key in keys)))
        places = [[self._places[key] for key in keys] for keys in found]
        ids = torch.tensor(places, dtype=torch.int64, device="cpu")
        scores = torch.einsum("bd,bkd->bk", vectors, self.embeddings[ids])
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores, ids.gather(1, order)

    def _fetch(self, keys: Sequence[Key]) -> None:
        new = [key for key in keys if key not in self._places]
        if not new:
            return
        texts, vectors = self._database.fetch(new)
        checked = encode_checked(_FUNCTION, _Vectors(self, np.asarray(vectors)), list(texts))
        if len(texts) != len(new):
            raise ValueError(f"{_FUNCTION}: database must give {len(new)} texts, gave {len(texts)}")
        # An interrupted fetch may have left texts without a place, but no place without a text.
        known = len(self._places)
        self.texts[known:] = texts
        self.embeddings = torch.cat([self.embeddings[:known], torch.from_numpy(checked)])
        self._places |= {key: known + place for place, key in enumerate(new)}


class _Vectors:
    """The database's vectors dressed as an embedder, so that the same checks apply."""

    def __init__(self, store: DatabaseStore, vectors: np.ndarray) -> None:
        self.name = f"{store.embedder} in the database"
        self.dim = store.dim
        self._vectors = vectors

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors
