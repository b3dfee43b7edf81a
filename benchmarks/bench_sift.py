"""SIFT on a batch of queries, each with its own pool, against the library of SIFT's authors."""

from dataclasses import dataclass, replace
from functools import partial

import torch

import hullft_ops
from benchmarks import peers
from benchmarks.pools import DISTINCT, PoolCase, distinct_pools, problem
from benchmarks.recorder import Recorder
from hullft_ops import reference

# activeft keeps the whole covariance matrix and picks within blocks of this many candidates.
_ACTIVEFT_BLOCK = 1000
_FLOAT32_ROUNDING = 1e-4


@dataclass(frozen=True)
class Case(PoolCase):
    noise: float = 0.01

    def __str__(self) -> str:
        return f"{super().__str__()}-noise{self.noise:g}"


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        small = Case(2, 30, n_select=5)
        return [small, replace(small, dtype="bfloat16", noise=0.2)]
    base = Case(64)
    headline = [base, Case(1), Case(64, dim=1024), Case(1, dim=1024)]
    if grid == "quick":
        return [*headline, replace(base, noise=0.2)]
    return [
        *headline,
        *(replace(base, noise=noise) for noise in (0.2, 1.0)),
        *(replace(base, n_select=n) for n in (5, 20, 200)),
        *(replace(base, dtype=dtype) for dtype in ("float64", "bfloat16", "float16")),
        *(replace(base, candidates=count) for count in (50, 1000)),
        Case(8, candidates=5000),
    ]


def test_sift(case: Case, recorder: Recorder, device: torch.device) -> None:
    pool, query = problem(case, device)
    select = partial(
        hullft_ops.sift_select, pool, query, case.n_select, noise=case.noise
    )
    _assert_as_reference(case, pool, query, select())
    recorder.ours(select)
    if case.candidates <= _ACTIVEFT_BLOCK and recorder.has_library("activeft"):
        _time_activeft(case, recorder)


def _time_activeft(case: Case, recorder: Recorder) -> None:
    pools, queries = distinct_pools(case.candidates, case.dim)
    pool, query = pools[0], queries[0]
    activeft = partial(peers.sift, pool, query, case.n_select, noise=case.noise)
    ours = hullft_ops.sift_select(pool, query, case.n_select, noise=case.noise)
    _, minus_variance = activeft()
    assert (ours.variance + minus_variance).abs().max() < _FLOAT32_ROUNDING
    recorder.peer("activeft SIFT", activeft, scale=case.batch)


def _assert_as_reference(
    case: Case,
    pool: torch.Tensor,
    query: torch.Tensor,
    selection: hullft_ops.SiftSelection,
) -> None:
    """Compare every distinct query of a small problem, or the first picks of one query of a large
    one. Repeated queries must agree."""
    small = case.candidates * case.n_select <= 200 * 50
    checked = case.n_select if small else 5
    for b in range(min(case.batch, DISTINCT if small else 1)):
        expected = reference.sift_select(
            pool[b].cpu(), query[b].cpu(), checked, noise=case.noise
        )
        variance = selection.variance[b, :checked].cpu().double()
        off = variance - torch.tensor(expected.variance, dtype=torch.float64)
        assert off.abs().max() < 1e-5
        if not pool.is_cuda:  # CUDA's state is float32: near rows may change places.
            assert selection.picks[b, :checked].tolist() == expected.picks
    for b in range(DISTINCT, case.batch):
        assert torch.equal(selection.picks[b], selection.picks[b % DISTINCT])
