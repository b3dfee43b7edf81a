"""Least squares with non-negative weights, in batches and to the optimum.

Wolfe, *Finding the Nearest Point in a Polytope* (Mathematical Programming 11, 1976), and Lawson
and Hanson, *Solving Least Squares Problems* (1974).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hullft_ops import _checks, _lstsq_gradients  # noqa: F401 (registers them)
from hullft_ops._ops import call_batched, has_values


class LstsqSolution(NamedTuple):
    """The solution for one query or a batch (``..`` is ``[]`` or ``[B]``).

    Weights, residual and gap are float64 for float64 pools and float32 for all others. On CUDA,
    bad values show in the outputs of their query: NaN in weights, residual and gap, -1 in
    ``num_iter``, and a ``support_size`` of 0.
    """

    weights: Tensor
    """[.., K]: the weight of each row of the pool, >= 0."""
    residual: Tensor
    """[..]: the norm of ``query - weights @ pool``. NaN with a Gram matrix and no ``square``."""
    gap: Tensor
    """[..]: how far the weights may be from the optimum, >= 0; see the function. It grows with the
    square of the vectors' lengths, and so does its rounding: compare it with the residual's."""
    support_size: Tensor
    """int64 [..]: how many weights are above 0."""
    num_iter: Tensor
    """int64 [..]: cycles, in each of which a row or a block of rows entered the support; rounds of
    exchanges, where a small pool is shared by a batch."""


def simplex_lstsq(
    pool: Tensor | None = None,
    query: Tensor | None = None,
    *,
    gram: Tensor | None = None,
    products: Tensor | None = None,
    square: Tensor | None = None,
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
    query needs ``2 * K * d`` bytes, and ``8 * m * (d + m)``. Rows much longer than they are many
    (``d >= 8 * K`` and ``4 * d >= K * K``) take one pass for their Gram matrix instead. Up to 64
    rows that eight or more queries share take some ``3 * K * d`` multiply-adds a query; there the
    solutions differ from the solutions of single queries by rounding.

    The squared residual is exact to some 1e-14 of the largest squared norm. On CUDA the solver sees
    the rows through their Gram matrix: for float32 rows of 32,768 numbers and more that is 1e-6,
    and rows that are close together beside their distance from 0 lose digits. Subtract a point near
    them from pool and query first: it does not change the solution. Squares below the smallest
    normal number are lost: the longest vector must be at least 1e-146 in float64.

    Weights and residual are differentiable with respect to pool, query, gram, products and square,
    in both modes and to any order; the gap, which is 0 up to rounding, is not. The gradient holds
    the support fixed, as a small change of the inputs does. Where a row is about to enter or to
    leave, the weights have a kink, and this is the gradient of one side. Where rows of the support
    are linearly dependent, it is the gradient of least norm. A residual of 0 has the gradient 0.

    Args:
        pool: [K, d], shared by a batch of queries, or [B, K, d]. float32, float64, bfloat16 or
            float16; the state is float64 on the CPU.
        query: [d] or [B, d], of the pool's dtype and device.
        gram: in place of pool, the inner products of its rows, [K, K] or [B, K, K]; float32 or
            float64, on the CPU. It may be singular, and counts as symmetric.
        products: in place of query, its inner products with the rows, [K] or [B, K]; 0 for the
            point of least norm.
        square: [] or [B], the query's inner product with itself, for the residual alone. NaN is an
            error, and in a compiled graph or under `torch.func` gives a residual of NaN.
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
    return _lstsq(
        "simplex_lstsq",
        pool,
        query,
        gram=gram,
        products=products,
        square=square,
        pool_sizes=pool_sizes,
        gap_tol=gap_tol,
        max_iter=max_iter,
    )


def nnls(
    pool: Tensor | None = None,
    query: Tensor | None = None,
    *,
    gram: Tensor | None = None,
    products: Tensor | None = None,
    square: Tensor | None = None,
    pool_sizes: Tensor | None = None,
    gap_tol: float = 0.0,
    max_iter: int | None = None,
) -> LstsqSolution:
    """Solves ``min ||query - weights @ pool||`` over ``weights >= 0``: batched NNLS.

    The algorithm is Lawson and Hanson's. For a matrix ``A`` with one column for each unknown, as
    SciPy's ``nnls`` takes it, the pool is ``A.T``. This solver factors the support's Gram matrix,
    which squares the condition number: beyond some 1e7 the residual is not the least. SciPy
    factors the rows.

    Returns:
        The gap is the largest violation of the conditions of an optimum, in units of an inner
        product: no row has a positive product with the residual, and rows of the support have 0.

    Arguments, cost, gradients and errors are as in `simplex_lstsq`.
    """
    return _lstsq(
        "nnls",
        pool,
        query,
        gram=gram,
        products=products,
        square=square,
        pool_sizes=pool_sizes,
        gap_tol=gap_tol,
        max_iter=max_iter,
    )


def _lstsq(
    op: str,
    pool: Any,
    query: Any,
    *,
    gram: Any,
    products: Any,
    square: Any,
    pool_sizes: Tensor | None,
    gap_tol: float,
    max_iter: int | None,
) -> LstsqSolution:
    """Check the arguments and run the operator, which takes a Gram matrix for a pool."""
    is_gram = gram is not None or products is not None or square is not None
    if is_gram and not (pool is None and query is None):
        raise ValueError(f"{op}: takes pool and query, or gram and products, not both")
    if is_gram:
        pool, query = gram, products
        _checks.check_gram(op, gram, products, square)
        _check_square(op, square)
    else:
        _checks.check_pool(op, "pool", pool, query)
    if max_iter is not None:
        max_iter = _checks.check_integer(op, "max_iter", max_iter, 0)
    results = call_batched(
        op,
        pool,
        query,
        gap_tol=_checks.check_number(op, "gap_tol", gap_tol),
        max_iter=max_iter,
        pool_sizes=_checks.check_sizes(op, "pool_sizes", pool_sizes, query),
        is_gram=is_gram,
    )
    solution = LstsqSolution(*results)
    if not is_gram:
        return solution
    return solution._replace(residual=_with_square(solution.residual, square))


def _check_square(op: str, square: Tensor | None) -> None:
    """Where no values can be read, a bad one shows in the residual."""
    if square is None or not has_values(square) or square.isfinite().all():
        return
    query = "" if square.dim() == 0 else f"[{int(square.isfinite().int().argmin())}]"
    raise ValueError(f"{op}: square{query} is NaN or infinity")


def _with_square(difference: Tensor, square: Tensor | None) -> Tensor:
    """The residual, from what its square is less than the query's square."""
    if square is None:
        return torch.full_like(difference, torch.nan)
    squared = square + difference
    is_zero = squared <= 0  # there the root has no derivative
    return squared.where(~is_zero, 1.0).sqrt().where(~is_zero, 0.0)
