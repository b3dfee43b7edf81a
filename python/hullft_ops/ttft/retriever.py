"""SIFT over a FAISS index, with the signature of ``activeft.sift.Retriever`` 0.1.1.

The guide "Select from tensors" lists the deliberate differences.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

import hullft_ops
from hullft_ops._C import build_info
from hullft_ops._checks import check_integer, check_noise
from hullft_ops._extras import needed_by

if TYPE_CHECKING:
    import faiss

_OP = "Retriever"


class RetrievalTime(NamedTuple):
    """Wall-clock seconds of one call in the search and in the selection, 0 without one."""

    faiss: float
    sift: float


# For n queries: scores [n, k], ids [n, k] and rows [n, k, d] of candidates. Missing ids are -1.
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]
Retrieved = tuple[np.ndarray, np.ndarray, np.ndarray, RetrievalTime]


class Retriever:
    """Finds many candidates with FAISS and selects among them.

    Args:
        index: a FAISS index that can reconstruct its vectors.
        acquisition_function, fast: must be None and False.
        llambda: the variance of SIFT's observation noise.
        also_query_opposite: take the candidates with the largest inner products with the query or
            its opposite. Needs an inner-product index.
        only_faiss: return the nearest, select nothing.
        device: where to select. None takes the current CUDA device if this build has kernels for
            one, else the CPU.

    Raises:
        TypeError, ValueError: an argument is not supported or does not fit the index.
    """

    # activeft's attribute; this package's operators select.
    acquisition_function = None

    def __init__(
        self,
        index: "faiss.Index",
        acquisition_function: None = None,
        llambda: float = 0.01,
        fast: bool = False,
        also_query_opposite: bool = True,
        only_faiss: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        with needed_by(_OP):
            import faiss
        if acquisition_function is not None or fast:
            raise ValueError(
                f"{_OP}: acquisition_function must be None and fast False: SIFT selects, exactly"
            )
        check_noise(_OP, llambda, "llambda")
        if also_query_opposite and index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(
                f"{_OP}: also_query_opposite needs an index by inner product, got metric type "
                f"{index.metric_type}: set it to False"
            )
        self.index = index
        self.also_query_opposite = also_query_opposite
        self.only_faiss = only_faiss
        usable = torch.cuda.is_available() and build_info()["cuda"]
        self.device = torch.device(device or ("cuda" if usable else "cpu"))
        self._noise = llambda

    def search(
        self,
        query: np.ndarray,
        N: int,  # noqa: N803 (activeft's names)
        K: int | None,  # noqa: N803
        mean_pooling: bool = False,
        threads: int = 1,
    ) -> Retrieved:
        """:meth:`batch_search` for one query of shape [m, d], without the batch dimension."""
        values, indices, rows, seconds = self.batch_search(
            np.asarray(query)[None], N, K, mean_pooling, threads
        )
        return values[0], indices[0], rows[0], seconds

    def batch_search(
        self,
        queries: np.ndarray,
        N: int,  # noqa: N803
        K: int | None = None,  # noqa: N803
        mean_pooling: bool = False,
        threads: int = 1,
    ) -> Retrieved:
        """Selects for every query.

        Args:
            queries: [n, m, d]: n queries of m embeddings each. Candidates are near the mean of the
                m; SIFT lowers the summed variance at all m.
            N: how many to return; a candidate may come repeatedly.
            K: how many candidates to search for. None, 0 and numbers beyond the index mean the
                whole index.
            mean_pooling: SIFT lowers only the variance at the mean of the m embeddings.
            threads: threads for the search, and for the selection on the CPU.

        Returns:
            Values float32 [n, N], indices int64 [n, N], embeddings float32 [n, N, d] and the time.
            Values are minus the variance after each of SIFT's picks, HullFT's convex weights, or
            FAISS's scores.

        Raises:
            ValueError: shapes or numbers do not fit the index, a value is NaN or infinity, or the
                index returns nothing for a query.
        """
        queries = np.require(queries, np.float32, ["C", "W"])
        self._check_queries(queries)
        count = self.index.ntotal
        n = check_integer(_OP, "N", N, 1)
        k = min(check_integer(_OP, "K", K or 0, 0), count) or count
        threads = check_integer(_OP, "threads", threads, 1)
        if self.only_faiss and n > k:
            raise ValueError(f"{_OP}: N is {n}, only {k} are searched for")
        means = queries.mean(axis=1, keepdims=True)
        with _threads(threads):
            start = perf_counter()
            candidates = self._search(means[:, 0], k)
            searched = perf_counter() - start
            if self.only_faiss:
                scores, ids, rows = (array[:, :n] for array in candidates)
                return scores, ids, rows, RetrievalTime(searched, 0.0)
            targets = means if mean_pooling else queries
            values, picks = self._select(candidates, targets, n)
            _, ids, rows = _columns(picks, candidates)
            selected = perf_counter() - start - searched
            return values, ids, rows, RetrievalTime(searched, selected)

    def _check_queries(self, queries: np.ndarray) -> None:
        dim = self.index.d
        if queries.ndim != 3 or queries.shape[1] == 0 or queries.shape[2] != dim:
            raise ValueError(
                f"{_OP}: queries must have shape [n, m, {dim}], got {list(queries.shape)}"
            )
        if not np.isfinite(queries).all():
            raise ValueError(f"{_OP}: queries have NaN or infinity")
        if self.index.ntotal == 0:
            raise ValueError(f"{_OP}: the index is empty")

    def _search(self, queries: np.ndarray, k: int) -> Candidates:
        nearest: Candidates = self.index.search_and_reconstruct(queries, k)
        if not self.also_query_opposite:
            return nearest
        opposite: Candidates = self.index.search_and_reconstruct(-queries, k)
        scores, ids, rows = (
            np.concatenate(pair, axis=1) for pair in zip(nearest, opposite, strict=True)
        )
        best = np.argsort(-scores, kind="stable")[:, :k]
        return _columns(best, (scores, ids, rows))

    def _select(
        self, candidates: Candidates, targets: np.ndarray, n_select: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values and picks [n, n_select]. The picks are columns of ``candidates``."""
        _, ids, rows = candidates
        counts = (ids >= 0).sum(axis=1)
        if (counts == 0).any():
            raise ValueError(
                f"{_OP}: the index returns nothing for query {counts.argmin()}"
            )
        pool = torch.from_numpy(rows).to(self.device)
        query = torch.from_numpy(targets).to(self.device)
        sizes = torch.from_numpy(counts).to(self.device)
        sift = hullft_ops.sift_select(
            pool, query, n_select, noise=self._noise, pool_sizes=sizes
        )
        columns: np.ndarray = sift.picks.cpu().numpy()
        # By -1, CUDA marks bad vectors.
        failed = (columns < 0).any(axis=1)
        if failed.any():
            raise ValueError(
                f"{_OP}: the candidates of query {failed.argmax()} have NaN or infinity, or "
                "inner products that overflow"
            )
        return -sift.variance.cpu().numpy(), columns


def _columns(columns: np.ndarray, candidates: Candidates) -> Candidates:
    """These columns [n, k] of the candidates."""
    scores, ids, rows = candidates
    return (
        np.take_along_axis(scores, columns, axis=1),
        np.take_along_axis(ids, columns, axis=1),
        np.take_along_axis(rows, columns[..., None], axis=1),
    )


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])
