"""Least squares with non-negative weights, in batches and to the optimum.

Wolfe, *Finding the Nearest Point in a Polytope* (Mathematical Programming 11, 1976), and Lawson
and Hanson, *Solving Least Squares Problems* (1974).
"""

from typing import NamedTuple

from torch import Tensor

from hullft_ops import _checks
from hullft_ops._ops import call_batched


class LstsqSolution(NamedTuple):
    """The solution for one query or a batch (``..`` is ``[]`` or ``[B]``).

    Weights, residual and gap are float64 for float64 pools and float32 for all others. On CUDA,
    bad values show in the outputs of their query: NaN in weights, residual and gap, -1 in
    ``num_iter``, and a ``support_size`` of 0.
    """

    weights: Tensor
    """[.., K]: the weight of each row of the pool, >= 0."""
    residual: Tensor
    """[..]: the norm of ``query - weights @ pool``."""
    gap: Tensor
    """[..]: how far the weights may be from the optimum, >= 0; see the function. It grows with the
    square of the vectors' lengths, and so does its rounding: compare it with the residual's."""
    support_size: Tensor
    """int64 [..]: how many weights are above 0."""
    num_iter: Tensor
    """int64 [..]: major cycles, in each of which one row entered the support."""


def simplex_lstsq(
    pool: Tensor,
    query: Tensor,
    *,
    pool_sizes: Tensor | None = None,
    gap_tol: float = 0.0,
    max_iter: int | None = None,
) -> LstsqSolution:
    """Solves ``min ||query - weights @ pool||`` over the simplex: ``weights >= 0``, their sum is 1.

    The solution is exact but for rounding: the algorithm is Wolfe's, fully corrective Frank-Wolfe,
    which ends after finitely many cycles. Rows may depend on one another, and the query may lie in
    their hull; then one of several solutions comes back. The same problem for a few rows and with
    integer counts is `fw_select` with ``variant="corrective"``.

    A query takes some ``10 * K * d`` multiply-adds, and ``m * (d + m)`` for each cycle with a
    support of m. A pool that queries share is read in place. On the CPU each thread that works on a
    query needs ``2 * K * d`` bytes, and ``8 * m * (d + m)``.

    The squared residual is exact to some 1e-14 of the largest squared norm. On CUDA, where the
    solver sees the rows through their Gram matrix, that is 1e-6 in float32, and rows that are close
    together beside their distance from 0 lose digits. Subtract a point near them from pool and
    query first: it does not change the solution.

    The result is not differentiable. "Least squares over the simplex" in the guides shows the
    gradients of residual and weights.

    Args:
        pool: [K, d], shared by a batch of queries, or [B, K, d]. float32, float64, bfloat16 or
            float16; the state is float64 on the CPU.
        query: [d] or [B, d], of the pool's dtype and device.
        pool_sizes: integers [B]: query b sees only the first ``pool_sizes[b]`` rows of its pool.
            If it sees none, its weights are 0.
        gap_tol: stop when the gap, a squared length, is at most this absolute value; 0 stops at the
            optimum.
        max_iter: the largest number of cycles; None for ``3 * K``.

    Returns:
        The gap is the Frank-Wolfe gap: half the squared residual is at most this far above its
        minimum.

    The errors are as in `fw_select`.
    """
    return _lstsq("simplex_lstsq", pool, query, pool_sizes, gap_tol, max_iter)


def nnls(
    pool: Tensor,
    query: Tensor,
    *,
    pool_sizes: Tensor | None = None,
    gap_tol: float = 0.0,
    max_iter: int | None = None,
) -> LstsqSolution:
    """Solves ``min ||query - weights @ pool||`` over ``weights >= 0``: batched NNLS.

    The algorithm is Lawson and Hanson's. For a matrix ``A`` with one column for each unknown, as
    SciPy's ``nnls`` takes it, the pool is ``A.T``. The factor is that of the support's Gram matrix,
    which squares the condition number: beyond some 1e7 the residual is not the least, 1e3 in
    float32 on CUDA. SciPy's factor is that of the rows.

    Returns:
        The gap is the largest violation of the conditions of an optimum, in units of an inner
        product: no row has a positive product with the residual, and those of the support have 0.

    Arguments, cost and errors are as in `simplex_lstsq`.
    """
    return _lstsq("nnls", pool, query, pool_sizes, gap_tol, max_iter)


def _lstsq(
    op: str,
    pool: Tensor,
    query: Tensor,
    pool_sizes: Tensor | None,
    gap_tol: float,
    max_iter: int | None,
) -> LstsqSolution:
    """Check the options and run the operator."""
    _checks.check_pool(op, "pool", pool, query)
    if max_iter is not None:
        max_iter = _checks.check_integer(op, "max_iter", max_iter, 0)
    results = call_batched(
        op,
        pool,
        query,
        gap_tol=_checks.check_tolerance(op, "gap_tol", gap_tol),
        max_iter=max_iter,
        pool_sizes=_checks.check_sizes(op, "pool_sizes", pool_sizes, query),
    )
    return LstsqSolution(*results)
