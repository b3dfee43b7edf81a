"""Embedding a datastore's texts in several processes, batch by batch."""

from collections.abc import Generator, Iterable
from functools import cached_property

import numpy as np

from hullft_ops.ttft.scale.cluster import (
    Workers,
    cluster,
    found_anywhere,
    in_order,
    staff,
    use_threads,
)
from hullft_ops.ttft.store.embedding import Embedder, EncodeBatches, encode_checked, load_embedder

# How many batches a worker may be ahead of the slowest; their vectors wait in memory.
_AHEAD = 8


class EmbeddingWorker:
    """Holds an embedder, which the first batch loads."""

    def __init__(self, threads: int, name: str, dim: int) -> None:
        self._threads, self._name, self._dim = threads, name, dim

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 ``[len(texts), dim]``, unit vectors."""
        return encode_checked("EmbeddingWorker", self._embedder, texts)

    @cached_property
    def _embedder(self) -> Embedder:
        use_threads(self._threads)
        embedder = load_embedder(self._name)
        if embedder.dim != self._dim:
            raise ValueError(
                f"EmbeddingWorker: embedder {self._name} must have dim {self._dim}, as it has "
                f"where the datastore is written, got {embedder.dim}"
            )
        return embedder


def ray_embedding(embedder: Embedder, name: str, workers: Workers) -> EncodeBatches:
    """Pass this to `index_corpus` to embed in Ray's workers.

    The workers start with the first batch and stop after the last. The batches are those of a
    single process, so their vectors equal those of a process with as many threads.

    Args:
        embedder: the datastore's embedder.
        name: the name by which `load_embedder` loads it, on the workers' machines too.
        workers: how many workers, and what each computes with.
    """
    source = found_anywhere(name)

    def encode(batches: Iterable[list[str]]) -> Generator[np.ndarray]:
        with (
            cluster(workers) as found,
            staff(EmbeddingWorker, found, [(source, embedder.dim)] * (found.count or 1)) as actors,
        ):
            ahead = _AHEAD * len(actors)
            yield from in_order(
                actors, batches, lambda actor, texts: actor.encode.remote(texts), ahead
            )

    return encode
