"""Rounding convex weights to counts, one query."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

import hullft_ops
from benchmarks import peers
from benchmarks.pools import distinct_pools
from benchmarks.recorder import Recorder
from hullft_ops import reference

# A trial move of the published code costs support x dim, and there are some support^2 trials.
_RECOMPUTED_SUPPORT = 50
_MEAN_ATOMS_IN_USE = 0.7


@dataclass(frozen=True)
class Case:
    support: int
    n_select: int
    dim: int = 384

    def __str__(self) -> str:
        return f"m{self.support}-N{self.n_select}-d{self.dim}"


def cases(smoke: bool) -> list[Case]:
    if smoke:
        return [Case(5, 10), Case(60, 70)]
    return [Case(12, 50), Case(50, 200), Case(1000, 10_000)]


def test_integerize(case: Case, recorder: Recorder, device: torch.device) -> None:
    pools, queries = distinct_pools(case.support, case.dim)
    pool, query, weights = pools[0], queries[0], _weights(case.support)
    support, target, shares = (tensor.to(device) for tensor in (pool, query, weights))
    integerize = partial(hullft_ops.integerize, support, target, shares, case.n_select)
    x, q, w = pool.numpy(), query.numpy(), weights.numpy()
    with_gram = partial(peers.numpy_integerize_gram, x, q, w, case.n_select)
    published = partial(peers.numpy_integerize, x, q, w, case.n_select)
    small = case.support <= _RECOMPUTED_SUPPORT
    expected = with_gram().tolist()
    assert integerize().tolist() == expected
    if small:
        counts = reference.integerize(pool, query, weights, case.n_select)
        assert counts.tolist() == expected
    recorder.ours(integerize)
    recorder.peer("NumPy, Gram", with_gram)
    if small:
        recorder.peer("NumPy", published)


def _weights(support: int) -> torch.Tensor:
    """Skewed as Frank-Wolfe's are, largest first."""
    random = np.random.default_rng(0)
    drawn = np.sort(random.dirichlet(np.full(support, _MEAN_ATOMS_IN_USE)))[::-1]
    return torch.from_numpy(drawn.copy())
