"""Selecting the texts to finetune on: Frank-Wolfe, its integer counts, and nearest neighbours.

The method is that of Khamis and Maalouf, *Efficient Test-Time Finetuning of LLMs via Convex
Reconstruction and Gradient Caching* (arXiv:2605.30337).
"""

from typing import NamedTuple

import torch

from hullft_ops import _checks
from hullft_ops import _ops as ops
from hullft_ops._ops import (
    SelectionTensors,
    check_same_device,
    fake_selection,
    passed,
    register_fake,
)


class Selection(NamedTuple):
    """What was selected, for one query or a batch (``..`` is ``[]`` or ``[B]``).

    Weights, residual and gap are float64 for float64 pools and float32 for all others.

    On CUDA, where raising would wait for the device, NaN, infinity, and sizes and candidates out of
    range show in what their query gets: -1 in ``indices`` and ``num_iter``, a ``support_size`` of
    0, and NaN in weights, residual and gap.
    """

    indices: torch.Tensor
    """int64 [.., n_select]: rows of the pool, largest weight first, lower index first on equal
    weights, -1 past the support."""
    weights: torch.Tensor
    """[.., n_select]: the convex weights, 0 past the support."""
    counts: torch.Tensor
    """int64 [.., n_select]: how often each row is used; >= 0, each row sums to n_select."""
    support_size: torch.Tensor
    """int64 [..]: how many entries of ``indices`` are set."""
    residual: torch.Tensor
    """[..]: distance of the query from its convex combination."""
    gap: torch.Tensor
    """[..]: the Frank-Wolfe gap over the whole pool, an upper bound on how much half the squared
    residual could still fall."""
    num_iter: torch.Tensor
    """int64 [..]: steps taken."""

    def multiset(self) -> torch.Tensor:
        """int64 [.., n_select]: every index repeated ``counts`` times, largest weight first."""
        return repeated(self.indices, self.counts)


def repeated(indices: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """int64 [.., n_select]: every index repeated ``counts`` times; counts sum to n_select."""
    ends = counts.cumsum(-1)
    units = torch.arange(counts.shape[-1], device=ends.device).expand(ends.shape).contiguous()
    return indices.gather(-1, torch.searchsorted(ends, units, right=True))


def _selection(batched: bool, tensors: SelectionTensors) -> Selection:
    return Selection(*(tensors if batched else (t.squeeze(0) for t in tensors)))


def _check_fw_options(
    op: str,
    n_select: int,
    max_iter: int,
    tol: float,
    gap_tol: float,
    variant: str,
    swap_passes: int,
) -> tuple[int, int, float, float, str, int]:
    """The options in the operators' order."""
    n_select = _checks.check_integer(op, "n_select", n_select, 1)
    max_iter = _checks.check_integer(op, "max_iter", max_iter, 0)
    _checks.check_tolerance(op, "tol", tol)
    _checks.check_tolerance(op, "gap_tol", gap_tol)
    _checks.check_variant(op, variant)
    swap_passes = _checks.check_integer(op, "swap_passes", swap_passes, 0)
    return n_select, max_iter, tol, gap_tol, variant, swap_passes


def fw_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    *,
    max_iter: int = 250,
    tol: float = 1e-5,
    gap_tol: float = 0.0,
    variant: str = "vanilla",
    swap_passes: int = 2,
    pool_sizes: torch.Tensor | None = None,
) -> Selection:
    """Writes each query as a sparse convex combination of its pool and rounds it to counts.

    Minimises ``||query - pool.T @ w||^2`` over the simplex by Frank-Wolfe with exact line search,
    then turns the weights into integer counts that sum to ``n_select`` (see :func:`integerize`).
    Ties go to the lowest index. The result does not depend on the number of threads, and is not
    differentiable.

    Vectors may have any norm: scaling pool and query by one power of two scales ``residual`` and
    ``gap`` and changes nothing else. ``gap_tol`` alone is absolute. A direction shorter than 1e-6
    of the longer of the two points it joins is taken for rounding: "vanilla" and "away" stop at
    it, "pairwise" moves the whole weight along it.

    An exact line search leaves the two atoms of a pairwise step level, so that rounding decides
    which of them the next step takes from: with another instruction set, or on CUDA, "pairwise" may
    end with another support of about the same residual. ``max_iter`` is often what ends it.

    As published, "vanilla" begins with one row and takes a step before it looks whether the support
    is full: with ``n_select=1`` it ends with two, returns the one of larger weight with that
    weight, and reports residual and gap of both. The other variants keep to one.

    Args:
        pool: [K, d], shared by a batch of queries, or [B, K, d]. float32, float64, bfloat16 or
            float16; the state is float64 on the CPU. Any strides; only a last dimension that is
            not dense is copied.
        query: [d] or [B, d], of the pool's dtype and device.
        n_select: the largest support, and what the counts sum to. It may exceed K.
        max_iter: the largest number of steps.
        tol: stop when the residual norm is below this share of the query's norm.
        gap_tol: stop when the Frank-Wolfe gap is at most this, a squared length; 0 is never.
        variant: ``"vanilla"`` stops when the support is full; ``"away"`` and ``"pairwise"``
            (Lacoste-Julien and Jaggi, 2015) drop atoms, and with a full support go on within it.
        swap_passes: passes of single-unit swaps that improve the counts.
        pool_sizes: int64 [B]: query b sees only the first ``pool_sizes[b]`` rows of its pool.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or options that do not fit, an empty pool, NaN or infinity.
        RuntimeError, torch.OutOfMemoryError: on CUDA, of a device that cannot run the kernels, or
            without the memory. Bad values show in the outputs there, see :class:`Selection`.
    """
    op = "fw_select"
    _checks.check_float_tensor(op, "pool", pool)
    _checks.check_float_tensor(op, "query", query)
    _checks.check_pool(op, "pool", pool, query)
    options = _check_fw_options(op, n_select, max_iter, tol, gap_tol, variant, swap_passes)
    _checks.check_sizes(op, "pool_sizes", pool_sizes, query)
    batched = query.dim() == 2
    tensors = ops.fw_select(
        pool,
        query if batched else query.unsqueeze(0),
        *options,
        pool_sizes,
    )
    return _selection(batched, tensors)


@register_fake("fw_select")
def _fake_fw_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    max_iter: int = 250,
    tol: float = 1e-5,
    gap_tol: float = 0.0,
    variant: str = "vanilla",
    swap_passes: int = 2,
    pool_sizes: torch.Tensor | None = None,
) -> SelectionTensors:
    return fake_selection("fw_select", "pool", pool, query, n_select, pool_sizes=pool_sizes)


def fw_select_indexed(
    embeddings: torch.Tensor,
    candidates: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    *,
    max_iter: int = 250,
    tol: float = 1e-5,
    gap_tol: float = 0.0,
    variant: str = "vanilla",
    swap_passes: int = 2,
    pool_sizes: torch.Tensor | None = None,
) -> Selection:
    """:func:`fw_select` on pools that are rows of one embedding matrix, which are read in place.

    The answer is that of ``fw_select(embeddings[candidates], query, ...)``: its ``indices`` are
    positions in ``candidates``; ``candidates.gather(-1, indices.clamp(min=0))`` are rows of
    ``embeddings``.

    Args:
        embeddings: [M, d], of any dtype that a pool may have.
        candidates: int64 [K] or [B, K]: rows of ``embeddings``, such as a search returns them.
        query: [d] or [B, d], with a batch exactly when ``candidates`` has one.
        pool_sizes: int64 [B]: only the first ``pool_sizes[b]`` candidates of query b are read.

    The other arguments and the errors are those of :func:`fw_select`; a candidate outside
    ``0..M-1`` is a ValueError.
    """
    op = "fw_select_indexed"
    _checks.check_float_tensor(op, "embeddings", embeddings)
    _checks.check_float_tensor(op, "query", query)
    if embeddings.dim() != 2:
        raise ValueError(f"{op}: embeddings must have shape [M, d], got {list(embeddings.shape)}")
    _checks.check_pool(op, "embeddings", embeddings, query)
    _checks.check_candidates(op, candidates, query)
    options = _check_fw_options(op, n_select, max_iter, tol, gap_tol, variant, swap_passes)
    _checks.check_sizes(op, "pool_sizes", pool_sizes, query)
    batched = query.dim() == 2
    tensors = ops.fw_select_indexed(
        embeddings,
        candidates if batched else candidates.unsqueeze(0),
        query if batched else query.unsqueeze(0),
        *options,
        pool_sizes,
    )
    return _selection(batched, tensors)


@register_fake("fw_select_indexed")
def _fake_fw_select_indexed(
    embeddings: torch.Tensor,
    candidates: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    max_iter: int = 250,
    tol: float = 1e-5,
    gap_tol: float = 0.0,
    variant: str = "vanilla",
    swap_passes: int = 2,
    pool_sizes: torch.Tensor | None = None,
) -> SelectionTensors:
    others = {"candidates": candidates, "pool_sizes": pool_sizes}
    return fake_selection("fw_select_indexed", "embeddings", embeddings, query, n_select, **others)


def integerize(
    support: torch.Tensor,
    query: torch.Tensor,
    weights: torch.Tensor,
    n_select: int,
    *,
    swap_passes: int = 2,
    support_sizes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rounds convex weights to counts that sum to ``n_select`` and keep the query close.

    Minimises ``||query - support.T @ counts / n_select||^2`` by rounding down, giving the units
    that remain one by one where each helps most, and ``swap_passes`` passes of single-unit swaps.
    Ties go to the lowest index. A swap must lower that squared distance by more than 1e-14 of the
    support's largest squared norm.

    Args:
        support: [m, d] or [B, m, d], float32, float64, bfloat16 or float16.
        query: [d] or [B, d], of the support's dtype and device.
        weights: [m] or [B, m], float32 or float64. Negative ones count as 0, their sum as 1; if
            none is positive they count as equal.
        n_select: what each row of counts sums to.
        swap_passes: the largest number of passes; one without a swap is the last.
        support_sizes: int64 [B]: query b uses only the first ``support_sizes[b]`` rows; the counts
            of the others are 0.

    Returns:
        int64 [m] or [B, m], every count >= 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit, an empty support, NaN or infinity, weights
            whose sum float64 does not hold.
        RuntimeError, torch.OutOfMemoryError: on CUDA, of a device that cannot run the kernels, or
            without the memory. Bad values give counts of -1 there.
    """
    op = "integerize"
    _checks.check_float_tensor(op, "support", support)
    _checks.check_float_tensor(op, "query", query)
    _checks.check_pool(op, "support", support, query)
    _check_weights(op, weights, support, query)
    n_select = _checks.check_integer(op, "n_select", n_select, 1)
    swap_passes = _checks.check_integer(op, "swap_passes", swap_passes, 0)
    _checks.check_sizes(op, "support_sizes", support_sizes, query)
    batched = query.dim() == 2
    counts: torch.Tensor = ops.integerize(
        support,
        query if batched else query.unsqueeze(0),
        weights if batched else weights.unsqueeze(0),
        n_select,
        swap_passes,
        support_sizes,
    )
    return counts if batched else counts.squeeze(0)


@register_fake("integerize")
def _fake_integerize(
    support: torch.Tensor,
    query: torch.Tensor,
    weights: torch.Tensor,
    n_select: int,
    swap_passes: int = 2,
    support_sizes: torch.Tensor | None = None,
) -> torch.Tensor:
    others = {"query": query, "weights": weights, **passed(support_sizes=support_sizes)}
    check_same_device("integerize", "support", support, **others)
    return support.new_empty(weights.shape, dtype=torch.int64)


def _check_weights(op: str, weights: object, support: torch.Tensor, query: torch.Tensor) -> None:
    tensor = _checks.check_tensor(op, "weights", weights)
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: weights must be float32 or float64, got {tensor.dtype}")
    _checks.check_device(op, "weights", tensor, "support", support)
    wanted = [*query.shape[:-1], support.shape[-2]]
    if list(tensor.shape) != wanted:
        raise ValueError(f"{op}: weights must have shape {wanted}, got {list(tensor.shape)}")


def knn_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    *,
    pool_sizes: torch.Tensor | None = None,
) -> Selection:
    """The ``n_select`` nearest rows of the pool by inner product, each once and of equal weight.

    Arguments, result and errors are those of :func:`fw_select`; ``n_select`` beyond a pool is a
    ValueError. Nearest first, lower index first on ties; ``num_iter`` is 0.
    """
    op = "knn_select"
    _checks.check_float_tensor(op, "pool", pool)
    _checks.check_float_tensor(op, "query", query)
    _checks.check_pool(op, "pool", pool, query)
    n_select = _checks.check_integer(op, "n_select", n_select, 1)
    if n_select > pool.shape[-2]:
        raise ValueError(f"{op}: n_select is {n_select}, pool has {pool.shape[-2]} rows")
    _checks.check_sizes(op, "pool_sizes", pool_sizes, query)
    batched = query.dim() == 2
    tensors = ops.knn_select(pool, query if batched else query.unsqueeze(0), n_select, pool_sizes)
    return _selection(batched, tensors)


@register_fake("knn_select")
def _fake_knn_select(
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    pool_sizes: torch.Tensor | None = None,
) -> SelectionTensors:
    return fake_selection("knn_select", "pool", pool, query, n_select, pool_sizes=pool_sizes)
