"""SIFT: the texts whose noisy observation leaves the least variance at the query.

The method comes from Hübotter, Bongni, Hakimi and Krause, *Efficiently Learning at Test-Time:
Active Fine-Tuning of LLMs* (arXiv:2410.08020).
"""

from typing import NamedTuple

from torch import Tensor

from hullft_ops import _checks
from hullft_ops._ops import call_batched
from hullft_ops.selection import Selection


class SiftSelection(NamedTuple):
    """SIFT's picks for one query or a batch (``..`` is ``[]`` or ``[B]``).

    The first seven fields form a `Selection` in which each of the ``n_select`` picks has the
    weight ``1 / n_select``: the row that is picked most often comes first, and residual and gap
    belong to the mean of the picks. Variances have the dtype of the weights.
    """

    indices: Tensor
    weights: Tensor
    counts: Tensor
    support_size: Tensor
    residual: Tensor
    gap: Tensor
    num_iter: Tensor
    """int64 [..]: n_select, 0 without candidates."""
    picks: Tensor
    """int64 [.., n_select]: rows of the pool in the order in which they were picked."""
    variance: Tensor
    """[.., n_select]: the variance at the query after each pick, summed over the targets where
    there are several."""

    @property
    def selection(self) -> Selection:
        """The picks as a `Selection`, without their order."""
        return Selection(*self[:7])

    def multiset(self) -> Tensor:
        """int64 [.., n_select]: every index repeated ``counts`` times, the largest count first."""
        return self.selection.multiset()

    def rows(self, candidates: Tensor) -> Tensor:
        """int64 [.., n_select]: the entries of ``candidates`` at ``indices``, as in `Selection`."""
        return self.selection.rows(candidates)


def sift_select(
    pool: Tensor,
    query: Tensor,
    n_select: int,
    *,
    candidates: Tensor | None = None,
    noise: float = 0.01,
    pool_sizes: Tensor | None = None,
) -> SiftSelection:
    """Picks one row after another, each time the one that lowers the variance at the query most.

    The model is a Gaussian process with the linear kernel ``x @ y``. Picking a row observes the
    process there, with independent noise; a row may be picked repeatedly. After n picks the next
    one takes ``K * (d + n)`` multiply-adds. On the CPU each thread that works on a query needs some
    ``8 * K * (2 * n_select + m + 40)`` bytes. Ties, threads and gradients are as in
    `fw_select`.

    Args:
        pool: as in `fw_select`.
        query: [d] or [B, d], of the pool's dtype and device; or [B, m, d] with m targets for each
            query. The picks lower the sum of the targets' variances. Residual and gap refer to the
            mean of the targets.
        n_select: the number of picks. It may exceed K.
        candidates: as in `fw_select`; ``picks`` too are positions in them.
        noise: the variance of the noise, the paper's lambda. It is absolute: for vectors ``s``
            times as long, ``s**2`` times the noise gives the same picks. The smaller it is, the
            less a second pick of the same row helps. Below some 1e-28 of the rows' squared norms,
            rounding decides which row helps most.
        pool_sizes: as in `fw_select`.

    The errors are as in `fw_select`. Where bad values show in the outputs on CUDA, picks are
    -1 and variances NaN.
    """
    op = "sift_select"
    _checks.check_pool(op, "pool", pool, query, targets=True)
    results = call_batched(
        op,
        pool,
        query,
        n_select=_checks.check_integer(op, "n_select", n_select, 1),
        noise=_checks.check_number(op, "noise", noise, is_positive=True),
        pool_sizes=_checks.check_sizes(op, "pool_sizes", pool_sizes, query),
        candidates=_checks.check_candidates(op, candidates, pool, query),
    )
    return SiftSelection(*results)
