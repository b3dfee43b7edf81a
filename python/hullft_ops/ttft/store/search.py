"""Searching embeddings with FAISS: all of a small datastore, inverted lists of a large one."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from hullft_ops._extras import needed_by

_RECALL = 0.95
_RECALL_AT = 200
_RECALL_QUERIES = 128
# Rows to train each list on; FAISS wants at least 39.
_TRAINING_ROWS = 64

# Scores float32 [B, k] and rows int64 [B, k].
Neighbours = tuple[np.ndarray, np.ndarray]


def nearest(matrix: np.ndarray, queries: np.ndarray, k: int) -> Neighbours:
    """The ``k`` largest inner products of each query, and their rows; on ties the lower row first.

    ``matrix`` is float32 ``[M, dim]``, M at least k; ``queries`` are float32 ``[B, dim]``.
    """
    with needed_by("searching embeddings"):
        import faiss
    asked = min(k + 1, len(matrix))
    while True:
        scores, rows = _sorted(
            *faiss.knn(queries, matrix, asked, metric=faiss.METRIC_INNER_PRODUCT)
        )
        # FAISS keeps any of the rows that tie with the last: ask for all of them.
        if asked == len(matrix) or (scores[:, k - 1] > scores[:, -1]).all():
            return scores[:, :k], rows[:, :k]
        asked = min(2 * asked, len(matrix))


def _sorted(scores: np.ndarray, rows: np.ndarray) -> Neighbours:
    order = np.lexsort((rows, -scores), axis=-1)
    return (
        np.take_along_axis(scores, order, axis=-1),
        np.take_along_axis(rows, order, axis=-1),
    )


def nearest_by_lists(
    index: Any, matrix: np.ndarray, queries: np.ndarray, k: int
) -> Neighbours:
    """As `nearest`, but without rows in the lists that ``index`` does not read."""
    scores, rows = _sorted(*index.search(queries, k))
    # The row numbers come from a file.
    if rows.max(initial=0) >= len(matrix):
        raise ValueError(f"the index names row {rows.max()} of {len(matrix)}")
    # Lists with too few rows between them cannot answer.
    for short in np.flatnonzero((rows < 0).any(axis=1)):
        query = queries[short : short + 1]
        scores[short], rows[short] = nearest(matrix, query, k)
    return scores, rows


def build_lists(matrix: np.ndarray, file: Path) -> float:
    """Write inverted lists of the rows to ``file``, and return their recall.

    That is the share of the 200 nearest that a search finds, measured on 128 of the rows. It reads
    as many lists as a recall of 0.95 needs.
    """
    import faiss
    from faiss.contrib.evaluation import knn_intersection_measure

    count, dim = matrix.shape
    lists = max(1, min(4 * math.isqrt(count), count // 39))
    index: Any = faiss.index_factory(
        dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT
    )
    index.train(_sample(matrix, lists * _TRAINING_ROWS))
    index.add(matrix)
    # A stored vector finds itself first, which proves nothing.
    queries = _sample(matrix, _RECALL_QUERIES)
    k = min(_RECALL_AT + 1, count)
    _, exact = nearest(matrix, queries, k)
    while True:
        _, rows = index.search(queries, k)
        recall: float = knn_intersection_measure(  # type: ignore[no-untyped-call]
            exact[:, 1:], rows[:, 1:]
        )
        if recall >= _RECALL or index.nprobe >= lists:
            break
        index.nprobe = min(2 * index.nprobe, lists)
    faiss.write_index(index, str(file))
    return recall


def open_lists(file: Path, matrix: np.ndarray) -> Any:
    """The FAISS index in ``file``, mapped. ValueError if it is not one of the rows."""
    import faiss

    try:
        index = faiss.read_index(
            str(file), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        )
    except RuntimeError as error:
        raise ValueError(f"{file} is not a FAISS index: {error}") from error
    if not isinstance(index, faiss.IndexIVF) or (index.ntotal, index.d) != matrix.shape:
        raise ValueError(f"{file} must hold inverted lists of {list(matrix.shape)}")
    return index


def _sample(matrix: np.ndarray, count: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    rows = generator.choice(len(matrix), min(count, len(matrix)), replace=False)
    return np.ascontiguousarray(matrix[np.sort(rows)])


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
