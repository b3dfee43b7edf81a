"""Selecting the texts to finetune on: Frank-Wolfe with integer counts, and nearest neighbours.

Khamis and Maalouf, *Efficient Test-Time Finetuning of LLMs via Convex Reconstruction and Gradient
Caching* (arXiv:2605.30337).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hullft_ops import _checks
from hullft_ops._checks import Variant
from hullft_ops._ops import call_batched


class Selection(NamedTuple):
    """The selection for one query or a batch (``..`` is ``[]`` or ``[B]``).

    Weights, residual and gap are float64 for float64 pools and float32 for all others. On CUDA,
    bad values show in the outputs of their query: -1 in ``indices`` and ``num_iter``, a
    ``support_size`` of 0, and NaN in weights, residual and gap.
    """

    indices: Tensor
    """int64 [.., n_select]: rows of the pool, largest weight first, lower index first on equal
    weights, -1 past the support."""
    weights: Tensor
    """[.., n_select]: the convex weights, 0 past the support. Of "vanilla" with ``n_select=1`` they
    sum to less than 1, see `fw_select`."""
    counts: Tensor
    """int64 [.., n_select]: how often each row is used; >= 0, summing to n_select. Rows of the
    support may have 0."""
    support_size: Tensor
    """int64 [..]: how many entries of ``indices`` are set."""
    residual: Tensor
    """[..]: distance of the query from its convex combination."""
    gap: Tensor
    """[..]: the Frank-Wolfe gap over the whole pool, >= 0: an upper bound on how much half the
    squared residual could still fall. Where ``max_support`` or ``n_select`` limits the support, the
    rows left out count too: it does not tell whether the weights are the best for the support."""
    num_iter: Tensor
    """int64 [..]: steps taken; of "corrective", rows that entered."""

    def multiset(self) -> Tensor:
        """int64 [.., n_select]: every index repeated ``counts`` times, largest weight first."""
        return repeated(self.indices, self.counts)

    def dense(self, n_rows: int) -> Tensor:
        """[.., n_rows]: the weight of each row of a pool of ``n_rows``, 0 outside the support.

        ValueError if the pool has more rows (on CUDA the kernel ends).
        """
        if not isinstance(
            n_rows, torch.SymInt
        ):  # of a pool's shape, while it is traced
            n_rows = _checks.check_integer("dense", "n_rows", n_rows, 1)
        # -1 goes to a first column, which is cut off.
        weights = self.weights.new_zeros(*self.indices.shape[:-1], n_rows + 1)
        try:
            weights = weights.scatter(-1, self.indices + 1, self.weights)
        except RuntimeError:
            largest = int(self.indices.max())
            raise ValueError(
                f"dense: n_rows must be the pool's number of rows, got {n_rows} and index "
                f"{largest}"
            ) from None
        return weights[..., 1:]

    def rows(self, candidates: Tensor) -> Tensor:
        """The entries of ``candidates`` at ``indices``: the selected rows of the datastore.

        Args:
            candidates: integers [K] or [.., K], the ids that a search returned.

        Returns:
            int64 [.., n_select], -1 past the support.
        """
        ids = _checks.check_integers("rows", "candidates", candidates)
        batch = self.indices.shape[:-1]
        if ids.shape[:-1] not in ((), batch):
            raise ValueError(
                f"rows: candidates must have the batch {list(batch)} or none, got shape "
                f"{list(ids.shape)}"
            )
        positions = self.indices.clamp(min=0)
        try:
            picked = ids.expand(*batch, -1).gather(-1, positions)
        except RuntimeError as error:
            raise ValueError(
                f"rows: candidates must be the selection's, got shape {list(ids.shape)}: "
                f"{error}"
            ) from None
        return picked.masked_fill(self.indices < 0, -1)


def repeated(indices: Tensor, counts: Tensor) -> Tensor:
    """int64 [.., n_select]: every index repeated ``counts`` times; counts sum to n_select or 0."""
    n_select = counts.shape[-1]
    units = torch.arange(n_select, device=counts.device)
    units = units.expand(counts.shape).contiguous()
    slots = torch.searchsorted(counts.cumsum(-1), units, right=True)
    # An empty support has -1 in its last slot too.
    return indices.gather(-1, slots.clamp(max=n_select - 1))


def fw_select(
    pool: Tensor,
    query: Tensor,
    n_select: int,
    *,
    candidates: Tensor | None = None,
    max_iter: int = 250,
    tol: float = 1e-5,
    gap_tol: float = 0.0,
    variant: Variant = "vanilla",
    swap_passes: int = 2,
    max_support: int | None = None,
    pool_sizes: Tensor | None = None,
) -> Selection:
    """Writes each query as a sparse convex combination of its pool and rounds it to counts.

    Minimises ``||query - pool.T @ w||^2`` over the simplex by Frank-Wolfe, from the row
    ``(pool @ query).argmax()``, then turns the weights into integer counts that sum to ``n_select``
    (see `integerize`). Ties go to the lowest index. The result does not depend on the number of
    threads, and is not differentiable. Several threads may call at once, with the same tensors too.

    "vanilla" takes steps with exact line search. "corrective" makes the weights the best for the
    support whenever a row has entered, and so reaches the optimum after about as many cycles as the
    support has rows: it is the solver of `simplex_lstsq`, for at most ``max_support`` rows. Take it
    for correlated rows, where steps arrive late or never.

    "vanilla" is the default because it is the published method. It stops as soon as the support is
    full, with weights that need not be the best for it: for the minimum-norm point of ``n_select``
    rows (a query of 0) it stops after ``n_select - 1`` steps, far from the optimum, which `gap`
    shows. For the best weights call `simplex_lstsq`, or take "corrective".

    A query takes ``K * d`` multiply-adds for each row that enters its support, and K for each step.
    On the CPU each thread that works on one needs some ``8 * K * (max_support + 40)`` bytes, and
    ``2 * K * d`` unless the pool is float64 and the variant not "corrective".

    Vectors may have any norm whose square the results' dtype holds: scaling pool and query by one
    power of two scales ``residual`` and ``gap`` and changes nothing else. A direction counts as
    rounding if it is shorter than 1e-6 of the longer of the two points it joins; "vanilla" stops
    there, and takes all of ``max_iter`` wherever the support does not fill. "corrective" stops at
    the optimum: where the slope toward the best row is at most 16 times float64's epsilon (2 times
    float32's on CUDA, unless the pool is float64) times the sizes of the inner products that it is
    made of.

    As published, "vanilla" takes a step before it checks whether the support is full. With
    ``n_select=1`` it ends with two rows, returns the one with the larger weight and that weight,
    and reports residual and gap of both. "corrective" keeps to one.

    Args:
        pool: [K, d], shared by a batch of queries, or [B, K, d]; with ``candidates`` [M, d], all
            embeddings. float32, float64, bfloat16 or float16; the state is float64 on the CPU. Any
            strides; only a last dimension that is not dense is copied.
        query: [d] or [B, d], of the pool's dtype and device.
        n_select: the sum of the counts, and the largest support unless ``max_support`` is less. It
            may exceed K.
        candidates: integers [K] or [B, K], as the query is batched: each query's pool is these rows
            of ``pool``, read in place, as if you passed ``pool[candidates]``: ``indices`` are
            positions in ``candidates``, and `Selection.rows` gives the rows of ``pool``. -1 at the
            end, with which FAISS pads, is an absent candidate; before a row it is an error.
        max_iter: the largest number of steps, or of cycles of "corrective".
        tol: stop when the residual norm is below this share of the query's norm; for a query of 0
            it never stops.
        gap_tol: stop when the Frank-Wolfe gap, a squared length, is at most this absolute value,
            the same for all queries of a batch; 0 never stops.
        variant: ``"vanilla"`` stops when the support is full, ``"corrective"`` (Wolfe, 1976) at
            the optimum or when the support is full.
        swap_passes: passes of single-unit swaps that improve the counts.
        max_support: the largest number of different rows, at most ``n_select``; None for
            ``n_select``.
        pool_sizes: integers [B]: query b sees only the first ``pool_sizes[b]`` rows of its pool. If
            it sees none, its support is empty: -1, counts and weights of 0, a gap of 0, and the
            query's norm as the residual. Of candidates, none of the first ``pool_sizes[b]`` is -1,
            and those after them may hold any value.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or options do not fit, a pool is empty, a value is NaN or
            infinity, or a size or candidate is out of range. On CUDA, where raising would wait for
            the device, bad values show in the outputs instead, see `Selection`.
        RuntimeError, torch.OutOfMemoryError: on CUDA, the device cannot run the kernels, or memory
            ran out.
    """
    op = "fw_select"
    _checks.check_pool(op, "pool", pool, query)
    n_select = _checks.check_integer(op, "n_select", n_select, 1)
    if max_support is not None:
        max_support = _checks.check_integer(op, "max_support", max_support, 1)
        if max_support > n_select:
            raise ValueError(
                f"{op}: max_support is {max_support}, n_select is {n_select}"
            )
    results = call_batched(
        op,
        pool,
        query,
        n_select=n_select,
        max_iter=_checks.check_integer(op, "max_iter", max_iter, 0),
        tol=_checks.check_number(op, "tol", tol),
        gap_tol=_checks.check_number(op, "gap_tol", gap_tol),
        variant=_checks.check_variant(op, variant),
        swap_passes=_checks.check_integer(op, "swap_passes", swap_passes, 0),
        max_support=max_support,
        pool_sizes=_checks.check_sizes(op, "pool_sizes", pool_sizes, query),
        candidates=_checks.check_candidates(op, candidates, pool, query),
    )
    return Selection(*results)


def integerize(
    support: Tensor,
    query: Tensor,
    weights: Tensor,
    n_select: int,
    *,
    swap_passes: int = 2,
    support_sizes: Tensor | None = None,
) -> Tensor:
    """Rounds convex weights to counts that sum to ``n_select`` and keep the query close.

    Minimises ``||query - support.T @ counts / n_select||^2``. It rounds down, gives each remaining
    unit to the row where it helps most, and makes ``swap_passes`` passes of single-unit swaps. Ties
    go to the lowest index. A pass visits each row that had units when it began, in ascending order,
    and tries every other row in ascending order: it moves a unit there at once if that lowers the
    squared distance by more than 1e-14 of the support's largest squared norm, and leaves the row
    when it has no unit left. The guide "Select from tensors" has every formula.

    A query takes ``m * m * d / 2`` multiply-adds, m for each remaining unit and ``m * m`` for each
    pass, and ``8 * m * m`` bytes.

    Args:
        support: [m, d] or [B, m, d], float32, float64, bfloat16 or float16.
        query: [d] or [B, d], of the support's dtype and device.
        weights: [m] or [B, m], float32 or float64. Negative ones count as 0, and the rest is scaled
            to sum to 1. If none is positive, all count as equal.
        n_select: the sum of each row of counts.
        swap_passes: the largest number of passes; a pass without a swap is the last.
        support_sizes: integers [B], at least 1: query b uses only the first ``support_sizes[b]``
            rows; the other rows get counts of 0.

    Returns:
        int64 [m] or [B, m], every count >= 0.

    The errors are as in `fw_select`; a sum of weights may not overflow float64. On CUDA bad
    values give counts of -1 instead.
    """
    op = "integerize"
    _checks.check_pool(op, "support", support, query)
    weights_dtypes = (torch.float32, torch.float64)
    _checks.check_dtype(op, "weights", weights, weights_dtypes, "float32 or float64")
    shape = [*query.shape[:-1], support.shape[-2]]
    if list(weights.shape) != shape:
        raise ValueError(
            f"{op}: weights must have shape {shape}, got {list(weights.shape)}"
        )
    [counts] = call_batched(
        op,
        support,
        query,
        weights,
        n_select=_checks.check_integer(op, "n_select", n_select, 1),
        swap_passes=_checks.check_integer(op, "swap_passes", swap_passes, 0),
        support_sizes=_checks.check_sizes(op, "support_sizes", support_sizes, query),
    )
    return counts


def knn_select(
    pool: Tensor,
    query: Tensor,
    n_select: int,
    *,
    candidates: Tensor | None = None,
    pool_sizes: Tensor | None = None,
) -> Selection:
    """The ``n_select`` nearest rows of the pool by inner product, each once and with equal weight.

    Arguments, result and errors are as in `fw_select`. An ``n_select`` beyond the size of a
    pool raises a ValueError, unless that pool has no rows. The nearest row comes first, on ties the
    lower index. ``num_iter`` is 0. A query takes ``2 * K * d`` multiply-adds and ``16 * K`` bytes.
    """
    op = "knn_select"
    _checks.check_pool(op, "pool", pool, query)
    candidates = _checks.check_candidates(op, candidates, pool, query)
    sizes = _checks.check_sizes(op, "pool_sizes", pool_sizes, query)
    n_select = _checks.check_integer(op, "n_select", n_select, 1)
    rows = pool.shape[-2] if candidates is None else candidates.shape[-1]
    if n_select > rows:
        raise ValueError(f"{op}: n_select is {n_select}, pool has {rows} rows")
    results = call_batched(
        op, pool, query, n_select=n_select, pool_sizes=sizes, candidates=candidates
    )
    return Selection(*results)
