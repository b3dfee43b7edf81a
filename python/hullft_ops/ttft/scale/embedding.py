"""Embedding a datastore's texts in several processes, batch by batch."""

from collections.abc import Callable, Generator, Iterable
from functools import partial

import numpy as np

from hullft_ops.ttft.scale.cluster import Workers, cluster, found_anywhere, in_order, staff
from hullft_ops.ttft.store.embedding import Embedder, EncodeBatches, encode_checked, load_embedder

# How many batches a worker may be ahead of the slowest; their vectors wait in memory.
_AHEAD = 8


def load_encoder(name: str, dim: int) -> Callable[[list[str]], np.ndarray]:
    """What a worker does: the unit vectors of texts, float32 ``[len(texts), dim]``."""
    embedder = load_embedder(name)
    if embedder.dim != dim:
        raise ValueError(
            f"ray_embedding: embedder {name} must have dim {dim}, as it has where the datastore "
            f"is written, got {embedder.dim}"
        )
    return partial(encode_checked, "ray_embedding", embedder)


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
