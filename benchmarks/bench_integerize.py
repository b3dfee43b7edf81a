"""Rounding convex weights to counts, one query."""

from dataclasses import dataclass

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


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case(5, 10), Case(60, 70)]
    if grid == "quick":
        return [Case(12, 50), Case(50, 200), Case(1000, 10_000)]
    sizes = [
        Case(m, n) for m in (5, 12, 50, 200, 1000) for n in (10, 50, 200, 1000, 10_000)
    ]
    return [*sizes, Case(12, 50, 1024), Case(1000, 10_000, 1024)]


def test_integerize(case: Case, recorder: Recorder, device: torch.device) -> None:
    pool, query = (tensor[0] for tensor in distinct_pools(case.support, case.dim))
    weights = _weights(case.support)
    support, target, shares = (tensor.to(device) for tensor in (pool, query, weights))

    def integerize() -> torch.Tensor:
        return hullft_ops.integerize(support, target, shares, case.n_select)

    x, q, w = pool.numpy(), query.numpy(), weights.numpy()
    small = case.support <= _RECOMPUTED_SUPPORT
    expected = peers.numpy_integerize_gram(x, q, w, case.n_select).tolist()
    assert integerize().tolist() == expected
    if small:
        assert (
            reference.integerize(pool, query, weights, case.n_select).tolist()
            == expected
        )
    recorder.ours(integerize)
    words = support.view(torch.int32)
    recorder.sweep(words.amax, words.numel() * words.element_size())
    recorder.peer(
        "NumPy, Gram", lambda: peers.numpy_integerize_gram(x, q, w, case.n_select)
    )
    if small:
        recorder.peer("NumPy", lambda: peers.numpy_integerize(x, q, w, case.n_select))


def _weights(support: int) -> torch.Tensor:
    """Skewed as Frank-Wolfe's are, largest first."""
    random = np.random.default_rng(0)
    drawn = np.sort(random.dirichlet(np.full(support, _MEAN_ATOMS_IN_USE)))[::-1]
    return torch.from_numpy(drawn.copy())
