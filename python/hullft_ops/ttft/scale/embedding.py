"""Embedding a datastore's texts in several processes, batch by batch."""

from collections.abc import Callable, Generator, Iterable

import numpy as np

from hullft_ops.ttft.scale.cluster import (
    Workers,
    cluster,
    found_anywhere,
    in_order,
    staff,
)
from hullft_ops.ttft.store.embedding import (
    Embedder,
    EncodeBatches,
    checked_vectors,
    load_embedder,
)

# How many batches a worker may be ahead of the slowest; their vectors wait in memory.
_AHEAD = 8


def load_encoder(name: str, dim: int) -> Callable[[list[str]], np.ndarray]:
    """What a worker does: the unit vectors of texts, float32 ``[len(texts), dim]``."""
    embedder = load_embedder(name)
    return lambda texts: checked_vectors(
        "ray_embedding", name, dim, texts, embedder.encode(texts)
    )


def ray_embedding(embedder: Embedder, name: str, workers: Workers) -> EncodeBatches:
    """Pass this to `index_corpus` to embed in Ray's workers.

    ``name`` is the one by which `load_embedder` loads the embedder, on the workers' machines too.
    The workers start with the first batch and stop after the last. The batches are those of a
    single process, so their vectors equal those of a process with as many threads.
    """
    arguments = found_anywhere(name), embedder.dim

    def encode(batches: Iterable[list[str]]) -> Generator[np.ndarray]:
        with (
            cluster(workers) as count,
            staff(load_encoder, workers, [arguments] * count) as actors,
        ):
            yield from in_order(actors, batches, ahead=_AHEAD * count)

    return encode
