"""Searching a matrix of embeddings: all of a small one, by inverted lists in a large one.

Inverted lists find candidates by short codes, and the embeddings then rank them exactly. So scores
are always inner products, and only the choice of rows is approximate.
"""

import errno
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from hullft_ops._extras import needed_by
from hullft_ops.ttft._files import FULL
from hullft_ops.ttft.store.format import DataFile, SearchIndex

# Rows to gather or add at a time.
_BLOCK_ROWS = 1 << 15
_RECALL_K = 200
_RECALL_QUERIES = 128
_CANDIDATES = 4
# Rows to train each list on; faiss wants at least 39.
_TRAINING_ROWS = 64
_MAX_SUBQUANTIZERS = 64
_LEAST_PART = 4  # dimensions
# Values of a part's code; learning them takes at least as many rows.
_PRODUCT_VALUES = 256

Neighbours = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class IndexThresholds:
    """Which index a datastore gets, by its number of texts, and the recall it must reach.

    Attributes:
        flat: exact search up to this many texts, and always for fewer than 4.
        ivf: inverted lists of 8-bit codes up to this many texts, and always for fewer than 256;
            product-quantised codes beyond.
        recall: a search reads enough lists to reach this recall at 200 neighbours.
    """

    flat: int = 100_000
    ivf: int = 1_000_000
    recall: float = 0.95


def exact_search(
    matrix: np.ndarray, queries: np.ndarray, k: int, rows: np.ndarray | None = None
) -> Neighbours:
    """The ``k`` largest inner products of each query and their rows, on ties the lower row first.

    ``rows``, int64, ascending and at least ``k``, are those to search; None for all.
    """
    if rows is None:
        return _exact_search_of_all(matrix, queries, k)
    scores = np.empty((len(queries), 0), np.float32)
    ids = np.empty((len(queries), 0), np.int64)
    # Merged block by block, or the best of all blocks would take memory in proportion to the rows.
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        found, places = _exact_search_of_all(matrix[block], queries, min(k, len(block)))
        scores = np.concatenate([scores, found], axis=1)
        ids = np.concatenate([ids, block[places]], axis=1)
        scores, ids = largest(scores, ids, k)
    return scores, ids


def _exact_search_of_all(matrix: np.ndarray, queries: np.ndarray, k: int) -> Neighbours:
    with needed_by("Datastore.search"):
        import faiss

    asked = min(k + 1, len(matrix))
    while True:
        found = faiss.knn(queries, matrix, asked, metric=faiss.METRIC_INNER_PRODUCT)
        # FAISS returns equal scores in the order of its heap, and keeps any of the rows that tie
        # with the last.
        scores, ids = largest(*found, asked)
        # FAISS does not find a row whose score is NaN.
        unfound = np.flatnonzero(ids[:, k - 1] < 0)
        if unfound.size:
            raise ValueError(
                f"Datastore.search: query {unfound[0]} must have finite inner products with at "
                f"least {k} texts: embeddings have NaN or infinity, or are too large"
            )
        if asked == len(matrix) or (scores[:, k - 1] > scores[:, -1]).all():
            return scores[:, :k], ids[:, :k]
        asked = min(2 * asked, len(matrix))


def largest(scores: np.ndarray, ids: np.ndarray, k: int) -> Neighbours:
    """The ``k`` largest of each row of scores ``[B, n]``, on ties the lower id first."""
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, axis=-1), np.take_along_axis(
        ids, order, axis=-1
    )


@dataclass(frozen=True)
class ListSearch:
    """Inverted lists, and the matrix that ranks their candidates."""

    index: Any  # a faiss.IndexIVF, whose stubs lack what the factory returns
    matrix: np.ndarray
    facts: SearchIndex

    def search(
        self, queries: np.ndarray, k: int, rows: np.ndarray | None = None
    ) -> Neighbours:
        """As `exact_search`, but misses rows in lists that it does not read."""
        scores = np.empty((len(queries), k), np.float32)
        ids = np.empty((len(queries), k), np.int64)
        for i, candidates in enumerate(self.find(queries, k, rows)):
            some = np.sort(candidates[candidates >= 0])
            # Lists with too few texts between them cannot answer.
            pool = some if len(some) >= k else rows
            [scores[i]], [ids[i]] = exact_search(
                self.matrix, queries[i : i + 1], k, pool
            )
        return scores, ids

    def find(
        self, queries: np.ndarray, k: int, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Rows that may be among the ``k`` nearest, int64 ``[B, candidates * k]``; -1 for none."""
        import faiss

        count, selector = len(self.matrix), None
        if rows is not None:
            mask = np.zeros(count, bool)
            mask[rows] = True
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
            count = len(rows)
        # FAISS's stubs lack the keywords that its Python layer adds.
        parameters = faiss.SearchParametersIVF(nprobe=self.facts.probes, sel=selector)  # type: ignore[call-arg]
        asked = min(k * self.facts.candidates, count)
        found: np.ndarray = self.index.search(queries, asked, params=parameters)[1]
        # The row numbers come from the file.
        foreign = found[(found < -1) | (found >= len(self.matrix))]
        if foreign.size:
            raise ValueError(
                f"Datastore.search: the index must name rows 0..{len(self.matrix) - 1}, names "
                f"{foreign[0]}: the datastore is corrupt"
            )
        return found


def open_index(file: Path, matrix: np.ndarray, facts: SearchIndex) -> ListSearch:
    """Map the index in ``file``, which FAISS trusts. ValueError if ``facts`` describes another."""
    import faiss

    try:
        index = faiss.read_index(
            str(file), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        )
    except RuntimeError as error:
        raise ValueError(f"{file} is missing or corrupt: {error}") from error
    found = (index.ntotal, index.d, getattr(index, "nlist", None))
    wanted = (*matrix.shape, facts.lists)
    if found != wanted:
        raise ValueError(f"{file} must have rows, dim and lists {wanted}, has {found}")
    return ListSearch(index, matrix, facts)


def build_index(
    folder: Path, vectors: DataFile, dim: int, thresholds: IndexThresholds
) -> SearchIndex:
    """Choose an index for the vectors in ``folder`` and, unless it is flat, write it there."""
    if vectors.count <= thresholds.flat or vectors.count < _CANDIDATES:
        return SearchIndex()
    import faiss

    matrix = np.memmap(
        folder / vectors.file, np.float32, "r", shape=(vectors.count, dim)
    )
    few = vectors.count <= thresholds.ivf or vectors.count < _PRODUCT_VALUES
    kind = "ivf" if few else "ivfpq"
    lists = max(1, min(4 * math.isqrt(vectors.count), vectors.count // 39))
    index = _trained(matrix, kind, lists)
    for start in range(0, len(matrix), _BLOCK_ROWS):
        index.add(np.ascontiguousarray(matrix[start : start + _BLOCK_ROWS]))
    facts = SearchIndex(kind, lists, probes=1, candidates=_CANDIDATES)
    facts = _measured(index, matrix, facts, thresholds.recall)
    file = folder / f"index-{uuid4().hex}.faiss"
    try:
        faiss.write_index(index, str(file))
    except RuntimeError as error:
        # Only the text has the system's error.
        codes = (code for code in FULL if os.strerror(code) in str(error))
        raise OSError(next(codes, errno.EIO), str(error), str(file)) from error
    return replace(facts, file=DataFile.written(file, vectors.count))


def _trained(matrix: np.ndarray, kind: str, lists: int) -> Any:
    import faiss

    dim = matrix.shape[1]
    most = min(_MAX_SUBQUANTIZERS, max(1, dim // _LEAST_PART))
    parts = max(m for m in range(1, most + 1) if dim % m == 0)
    # "np" skips sorting the codes. That takes most of the time, and no search here uses the order.
    code = "SQ8" if kind == "ivf" else f"PQ{parts}x8np"
    index: Any = faiss.index_factory(
        dim, f"IVF{lists},{code}", faiss.METRIC_INNER_PRODUCT
    )
    # A small datastore trains on what it has, without FAISS's warnings.
    index.cp.min_points_per_centroid = 1
    if kind == "ivfpq":
        index.pq.cp.min_points_per_centroid = 1
    index.train(_sample(matrix, max(lists * _TRAINING_ROWS, 1 << 14)))
    return index


def _measured(
    index: Any, matrix: np.ndarray, facts: SearchIndex, recall: float
) -> SearchIndex:
    """The smallest number of lists, doubling each time, that reaches the recall; else all lists."""
    queries = _sample(matrix, _RECALL_QUERIES)
    # A stored vector always finds itself, which proves nothing.
    k = min(_RECALL_K, len(matrix) - 1)
    _, exact = exact_search(matrix, queries, k + 1)
    while True:
        found = ListSearch(index, matrix, facts).find(queries, k + 1)
        # Candidates are ranked exactly, so a neighbour among them is not lost again.
        hits = [
            len(np.intersect1d(a[1:], b)) for a, b in zip(exact, found, strict=True)
        ]
        share = float(np.mean(hits)) / k
        if share >= recall or facts.probes == facts.lists:
            return replace(facts, recall=share, recall_k=k, recall_queries=len(queries))
        facts = replace(facts, probes=min(2 * facts.probes, facts.lists))


def _sample(matrix: np.ndarray, count: int) -> np.ndarray:
    rows = np.random.default_rng(0).choice(
        len(matrix), min(count, len(matrix)), replace=False
    )
    return np.ascontiguousarray(matrix[np.sort(rows)])
