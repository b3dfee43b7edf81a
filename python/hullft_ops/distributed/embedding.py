"""Embedding a corpus in workers, batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from hullft_ops.distributed.workers import Workers, do_item, worker_pool
from hullft_ops.ttft.embedding import Precision, load_embedder
from hullft_ops.ttft.store.writer import Embed


def load_encoder(name: str, dtype: Precision | None) -> Callable[[Any], np.ndarray]:
    """What a worker does: the vectors of a batch of texts, float32 ``[len(texts), dim]``."""
    return load_embedder(name, dtype=dtype).encode


def ray_embedding(name: str, workers: Workers, dtype: Precision | None = None) -> Embed:
    """What `index_corpus` takes as ``embed``, to embed in workers.

    A single process makes the same groups, and vectors of the same bits if it has as many
    threads. As many batches as there are workers are in memory.

    Args:
        name: of the embedder, for `load_embedder`, on the workers' machines too.
        workers: how many; they start with the first batch.
        dtype: as in `load_embedder`.
    """

    def embed(batches: Iterable[list[str]]) -> Iterator[np.ndarray]:
        with worker_pool(workers, load_encoder, name=name, dtype=dtype) as pool:
            for batch in batches:
                pool.submit(do_item, batch)
                if not pool.has_free():
                    yield pool.get_next()
            while pool.has_next():
                yield pool.get_next()

    return embed
