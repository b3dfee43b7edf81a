"""One linear-minimisation step of Frank-Wolfe, for your own loops.

Frank and Wolfe, *An Algorithm for Quadratic Programming* (1956). The problem and its notation are
as in `hullft_ops.fw_select`.
"""

from typing import NamedTuple

from torch import Tensor

from hullft_ops import _checks
from hullft_ops._ops import call_batched


class LmoStep(NamedTuple):
    """Where to move, and how far, for one query or a batch (``..`` is ``[]`` or ``[B]``).

    All fields except the vertex are float64 for float64 pools and float32 for all others.
    """

    vertex: Tensor
    """int64 [..]: the row of the pool that correlates best with ``query - current``."""
    correlation: Tensor
    """[..]: its inner product with ``query - current``."""
    gamma: Tensor
    """[..]: the step in 0..1 that brings ``current + gamma * (pool[vertex] - current)`` nearest to
    the query; 0 when the row lies within 1e-6 of the longer of it and ``current``."""
    gap: Tensor
    """[..]: the Frank-Wolfe gap, as in `Selection`."""


def fw_lmo(
    pool: Tensor,
    query: Tensor,
    current: Tensor,
    *,
    pool_sizes: Tensor | None = None,
) -> LmoStep:
    """The vertex of the pool's hull to move toward from ``current``, with exact line search.

    A query takes ``K * d`` multiply-adds and ``8 * K`` bytes.

    Args:
        pool: as in `fw_select`.
        query: as in `fw_select`.
        current: shaped like ``query``: the current point, a convex combination of the pool.
        pool_sizes: as in `fw_select`, but at least 1.

    Norms and errors are as in `fw_select`. On CUDA bad values show in the outputs instead:
    a vertex of -1, and NaN.
    """
    op = "fw_lmo"
    _checks.check_pool(op, "pool", pool, query)
    _checks.check_same_dtype(op, "current", current, "query", query)
    if current.shape != query.shape:
        raise ValueError(
            f"{op}: current must have query's shape {list(query.shape)}, got {list(current.shape)}"
        )
    sizes = _checks.check_sizes(op, "pool_sizes", pool_sizes, query)
    results = call_batched(op, pool, query, current, pool_sizes=sizes)
    return LmoStep(*results)
