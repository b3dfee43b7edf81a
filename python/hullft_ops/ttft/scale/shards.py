"""A datastore whose embeddings several workers hold and search exactly."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hullft_ops.ttft.scale.cluster import Workers, cluster, first_result, staff
from hullft_ops.ttft.store.base import Found, Queries, checked_search
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.search import Neighbours, exact_search, largest


def load_shard(
    path: Path, first: int, stop: int
) -> Callable[[tuple[np.ndarray, int]], Neighbours]:
    """What a worker does: the ``k`` nearest of embeddings ``[first, stop)``, or all if fewer."""
    rows = Datastore.open(path, verify=False).embeddings.numpy()[first:stop].copy()

    def search(query: tuple[np.ndarray, int]) -> Neighbours:
        vectors, k = query
        scores, ids = exact_search(rows, vectors, min(k, len(rows)))
        return scores, ids + first

    return search


class ShardedStore:
    """A `Store` that workers search, made by `sharded`. It finds what one process finds, ties too.

    This process reads the texts and embeddings that a search finds. ``datastore`` is for metadata
    and `Datastore.filter`.
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

    def search(self, queries: Queries, k: int) -> Found:
        """As `Datastore.search`, but always exact. ScaleError if the workers died."""
        vectors, k = checked_search("ShardedStore.search", self, queries, k)
        promises = [actor.work.remote((vectors.numpy(), k)) for actor in self._actors]
        parts = [first_result([promise])[1] for promise in promises]
        scores, ids = (
            np.concatenate(each, axis=1) for each in zip(*parts, strict=True)
        )
        scores, ids = largest(scores, ids, k)
        return torch.from_numpy(scores), torch.from_numpy(ids)


@contextmanager
def sharded(
    path: str | Path, workers: Workers | None = None, *, verify: bool = True
) -> Iterator[ShardedStore]:
    """Open the datastore at ``path`` for the block. Each worker holds an equal part of it.

    The directory is the same on the workers' machines. Raises what `Datastore.open` raises, and a
    ScaleError if the cluster is too small.
    """
    whole, workers = Path(path).resolve(), workers or Workers()
    store = Datastore.open(whole, verify=verify)
    with cluster(workers) as most:
        count = min(most, len(store))
        borders = [len(store) * i // count for i in range(count + 1)]
        shards = [(whole, *border) for border in pairwise(borders)]
        with staff(load_shard, workers, shards) as actors:
            yield ShardedStore(store, actors)
