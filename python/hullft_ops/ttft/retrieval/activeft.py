"""SIFT over a FAISS index, with the signature of ``activeft.sift.Retriever``.

The signature is that of activeft's repository. Calls for activeft 0.1.1 on PyPI keep their meaning.
The guide "Select from tensors" lists the deliberate differences.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    import faiss

import hullft_ops
from hullft_ops import _checks
from hullft_ops._C import build_info, cuda_unusable
from hullft_ops._extras import needed_by
from hullft_ops.selection import repeated
from hullft_ops.ttft.store.embedding import for_torch

METHODS = ("sift", "hullft")
_OP = "Retriever"


class RetrievalTime(NamedTuple):
    """Wall-clock seconds of one call in the search and in the selection, 0 without one."""

    faiss: float
    sift: float


# For n queries: scores [n, k], ids [n, k] and rows [n, k, d] of candidates. Missing ids are -1.
_Found = tuple[np.ndarray, np.ndarray, np.ndarray]
Retrieved = tuple[np.ndarray, np.ndarray, np.ndarray, RetrievalTime]
_LAMBDA = 0.01


class Retriever:
    """Finds many candidates with FAISS and selects among them."""

    def __init__(
        self,
        index: "faiss.Index",
        acquisition_function: None = None,
        lambda_: float = _LAMBDA,
        fast: bool = False,
        also_query_opposite: bool = True,
        alpha: float | None = None,
        only_faiss: bool = False,
        device: torch.device | str | None = None,
        *,
        method: str = "sift",
        llambda: float | None = None,
    ) -> None:
        """Raises TypeError or ValueError if an argument is not supported or does not fit the index.

        Args:
            index: a FAISS index that can reconstruct its vectors.
            acquisition_function, fast: must be None and False.
            lambda_: the variance of SIFT's observation noise.
            also_query_opposite: take the candidates with the largest inner products with the query
                or its opposite. Needs an inner-product index.
            alpha: keep SIFT's i-th pick only if the standard deviation after it is at most
                1 / (alpha * i). None keeps all. A bool here is ``only_faiss``, and ``device`` comes
                after it, as in activeft 0.1.1.
            only_faiss: return the nearest, select nothing.
            device: where to select. None takes the current CUDA device if this build's kernels run
                there, else the CPU, and warns if the device is unusable.
            method: "sift", or "hullft" for :func:`hullft_ops.fw_select` (pairwise).
            llambda: activeft 0.1.1's name for ``lambda_``.
        """
        with needed_by(_OP):
            import faiss
        if acquisition_function is not None:
            raise ValueError(
                f"{_OP}: acquisition_function must be None, got "
                f"{type(acquisition_function).__name__}: only SIFT with lambda_ is supported, use "
                "activeft for other acquisition functions"
            )
        if fast:
            raise ValueError(
                f"{_OP}: fast must be False, got {fast!r}: SIFT-Fast approximates SIFT, whose "
                "exact picks are made here in less time"
            )
        if method not in METHODS:
            raise ValueError(
                f"{_OP}: method must be one of {', '.join(METHODS)}, got {method!r}"
            )
        if llambda is not None and lambda_ not in (_LAMBDA, llambda):
            raise ValueError(
                f"{_OP}: lambda_ is {lambda_}, llambda, its other name, is {llambda}"
            )
        name, noise = ("lambda_", lambda_) if llambda is None else ("llambda", llambda)
        _checks.check_noise(_OP, noise, name)
        # activeft 0.1.1 has no alpha, so only_faiss and device come earlier.
        if isinstance(alpha, bool) and only_faiss is not True:
            place: Any = only_faiss
            alpha, only_faiss, device = None, alpha, place or device
        if not isinstance(only_faiss, bool | np.bool_):
            raise TypeError(
                f"{_OP}: only_faiss must be a bool, got {type(only_faiss).__name__}"
            )
        if alpha is not None:
            _checks.check_noise(_OP, alpha, name="alpha")
            if method != "sift":
                raise ValueError(f"{_OP}: alpha stops sift, method is {method}")
        if also_query_opposite and index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(
                f"{_OP}: also_query_opposite needs an index by inner product, got metric type "
                f"{index.metric_type}: set it to False"
            )
        self.index = index
        self.also_query_opposite = also_query_opposite
        self.alpha = alpha
        self.only_faiss = bool(only_faiss)
        self.device = _device(device)
        self._noise = noise
        self._method = method

    @property
    def acquisition_function(self) -> None:
        """None, because this package's operators select."""

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
            FAISS's scores. With ``alpha`` each is an object array [n] of arrays of up to N.

        ValueError if shapes or numbers do not fit the index, a value is NaN or infinity, or the
        index finds nothing for a query.
        """
        queries = for_torch(queries, np.float32)
        n, k, threads = self._check_search(queries, N, K, threads)
        means = queries.mean(axis=1, keepdims=True)
        with _threads(threads):
            start = perf_counter()
            found = self._search(means[:, 0], k)
            searched = perf_counter()
            if self.only_faiss:
                scores, ids, rows = (array[:, :n] for array in found)
                return scores, ids, rows, RetrievalTime(searched - start, 0.0)
            targets = means if mean_pooling or self._method == "hullft" else queries
            values, picks = self._select(found, targets, n)
            ids, rows = _columns(picks, *found[1:])
            if self.alpha is not None:
                values, ids, rows = _stopped(self.alpha, values, ids, rows)
            return (
                values,
                ids,
                rows,
                RetrievalTime(searched - start, perf_counter() - searched),
            )

    def _check_search(
        self, queries: np.ndarray, n: int, k: int | None, threads: int
    ) -> tuple[int, int, int]:
        if queries.ndim != 3 or queries.shape[1] == 0:
            raise ValueError(
                f"{_OP}: queries must have shape [n, m, d], got {list(queries.shape)}"
            )
        if queries.shape[2] != self.index.d:
            raise ValueError(
                f"{_OP}: queries have dim {queries.shape[2]}, the index has dim {self.index.d}"
            )
        if not np.isfinite(queries).all():
            raise ValueError(f"{_OP}: queries have NaN or infinity")
        if self.index.ntotal == 0:
            raise ValueError(f"{_OP}: the index is empty")
        n = _checks.check_integer(_OP, "N", n, 1)
        threads = _checks.check_integer(_OP, "threads", threads, 1)
        k = _checks.check_integer(_OP, "K", 0 if k is None else k, 0)
        k = min(k, self.index.ntotal) or self.index.ntotal
        if self.only_faiss and n > k:
            raise ValueError(f"{_OP}: N is {n}, only {k} are searched for")
        return n, k, threads

    def _search(self, queries: np.ndarray, k: int) -> _Found:
        found: _Found = self.index.search_and_reconstruct(queries, k)
        if not self.also_query_opposite:
            return found
        opposite: _Found = self.index.search_and_reconstruct(-queries, k)
        both = [
            np.concatenate(pair, axis=1) for pair in zip(found, opposite, strict=True)
        ]
        scores, ids, rows = _columns(np.argsort(-both[0], kind="stable")[:, :k], *both)
        return scores, ids, rows

    def _select(
        self, candidates: _Found, targets: np.ndarray, n_select: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values and picks [n, n_select]. The picks are columns of ``candidates``."""
        _, ids, rows = candidates
        counts = (ids >= 0).sum(axis=1)
        if len(counts) and counts.min() == 0:
            raise ValueError(
                f"{_OP}: the index finds nothing for query {counts.argmin()}"
            )
        pool, query, sizes = (
            torch.from_numpy(array).to(self.device) for array in (rows, targets, counts)
        )
        if self._method == "sift":
            sift = hullft_ops.sift_select(
                pool, query, n_select, noise=self._noise, pool_sizes=sizes
            )
            values, picks = -sift.variance, sift.picks
        else:
            hull = hullft_ops.fw_select(
                pool, query[:, 0], n_select, variant="pairwise", pool_sizes=sizes
            )
            values, picks = repeated(hull.weights, hull.counts), hull.multiset()
        columns: np.ndarray = picks.cpu().numpy()
        # By -1, CUDA marks bad vectors.
        failed = (columns < 0).any(axis=1)
        if failed.any():
            raise ValueError(
                f"{_OP}: the candidates of query {failed.argmax()} have NaN or infinity, or "
                "inner products that overflow"
            )
        return values.cpu().numpy(), columns


def _columns(columns: np.ndarray, *arrays: np.ndarray) -> Iterator[np.ndarray]:
    """These columns [n, k] of each array [n, m] or [n, m, d]."""
    for array in arrays:
        yield np.take_along_axis(
            array, columns if array.ndim == 2 else columns[..., None], axis=1
        )


def _stopped(
    alpha: float, values: np.ndarray, *columns: np.ndarray
) -> Iterator[np.ndarray]:
    """Keep the values, ids and rows that are certain enough for their place."""
    deviation = np.sqrt(np.maximum(-values, 0))
    kept = deviation <= 1 / (alpha * np.arange(1, values.shape[1] + 1))
    for column in (values, *columns):
        ragged = np.empty(len(kept), dtype=object)
        for i, mask in enumerate(kept):
            ragged[i] = column[i][mask]
        yield ragged


def _device(device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if not torch.cuda.is_available() or not build_info()["cuda"]:
        return torch.device("cpu")
    # Asking torch for the current device starts CUDA; before that it is the first.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    unusable = cuda_unusable(torch.cuda.current_device() if started else 0)
    if not unusable:
        return torch.device("cuda")
    warnings.warn(f"{_OP}: selects on the CPU: {unusable}", stacklevel=3)
    return torch.device("cpu")


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
