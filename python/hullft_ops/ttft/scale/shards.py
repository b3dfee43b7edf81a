"""A datastore whose embeddings several workers hold and search exactly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hullft_ops.ttft.scale.cluster import Workers, cluster, fetched, first_ready, staff, use_threads
from hullft_ops.ttft.store.base import checked_search
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.search import Neighbours, exact_search, largest


class ShardWorker:
    """Holds the embeddings ``[first, stop)`` of a datastore, which its first search loads."""

    def __init__(self, threads: int, path: Path, first: int, stop: int) -> None:
        self._threads, self._path, self._first, self._stop = threads, path, first, stop

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """The ``k`` nearest of its embeddings, or all of them if there are fewer."""
        scores, ids = exact_search(self._rows, queries, min(k, len(self._rows)))
        return scores, ids + self._first

    @cached_property
    def _rows(self) -> np.ndarray:
        use_threads(self._threads)
        store = Datastore.open(self._path, verify=False)
        return store.embeddings.numpy()[self._first : self._stop].copy()


class ShardedStore:
    """A `Store` that workers search. `sharded` makes it.

    It finds what exact search in one process finds, ties included. This process reads the texts
    and embeddings that a search finds.

    Attributes:
        datastore: the datastore itself, for metadata and `Datastore.filter`. It searches here.
    """

    def __init__(self, store: Datastore, actors: Sequence[Any]) -> None:
        self.datastore = store
        self.texts = store.texts
        self.embeddings = store.embeddings
        self.embedder = store.embedder
        self.dim = store.dim
        self._actors = actors

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(
        self, queries: np.ndarray | torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Datastore.search`, but always exact, whatever the datastore's index.

        Raises:
            ScaleError: a worker and its replacements died, or no machine of the cluster is left.
        """
        checked, k = checked_search("ShardedStore.search", self, queries, k)
        vectors = checked.numpy()
        promises = [actor.search.remote(vectors, k) for actor in self._actors]
        parts = [fetched(first_ready([promise])) for promise in promises]
        scores = np.concatenate([part[0] for part in parts], axis=1)
        ids = np.concatenate([part[1] for part in parts], axis=1)
        scores, ids = largest(scores, ids, k)
        return torch.from_numpy(scores), torch.from_numpy(ids)


@contextmanager
def sharded(
    path: str | Path, workers: Workers | None = None, *, verify: bool = True
) -> Iterator[ShardedStore]:
    """Open the datastore at ``path`` for the block. Each worker holds an equal part of it.

    Args:
        path: the datastore's directory, the same on the workers' machines.
        workers: how many workers, and the threads of each.
        verify: as in `Datastore.open`.

    Raises:
        ImportError: Ray is not installed.
        FileNotFoundError, ValueError: as `Datastore.open`.
        ScaleError: the cluster is too small.
    """
    whole = Path(path).resolve()
    store = Datastore.open(whole, verify=verify)
    with cluster(workers or Workers()) as found:
        count = min(found.count or 1, len(store))
        borders = [len(store) * i // count for i in range(count + 1)]
        parts = [(whole, first, stop) for first, stop in pairwise(borders)]
        with staff(ShardWorker, found, parts) as actors:
            yield ShardedStore(store, actors)
