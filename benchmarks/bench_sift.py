"""SIFT on a batch of queries, each with its own pool, against the library of SIFT's authors."""

from dataclasses import dataclass, replace
from functools import partial

import torch

import hullft_ops
from benchmarks import peers
from benchmarks.pools import DISTINCT, PoolCase, distinct_pools, problem
from benchmarks.recorder import Recorder
from hullft_ops import reference

_FLOAT32_ROUNDING = 1e-4


@dataclass(frozen=True)
class Case(PoolCase):
    noise: float = 0.01

    def __str__(self) -> str:
        return f"{super().__str__()}-noise{self.noise:g}"


def cases(smoke: bool) -> list[Case]:
    if smoke:
        small = Case(2, 30, n_select=5)
        return [small, replace(small, dtype="bfloat16", noise=0.2)]
    return [
        Case(64),
        Case(1),
        Case(64, dim=1024),
        Case(1, dim=1024),
        Case(64, noise=0.2),
    ]


def test_sift(case: Case, recorder: Recorder, device: torch.device) -> None:
    pool, query = problem(case, device)
    select = partial(
        hullft_ops.sift_select, pool, query, case.n_select, noise=case.noise
    )
    _assert_as_reference(case, pool, query, select())
    recorder.ours(select)
    if recorder.has_library("activeft"):
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
    """Compare every distinct query. Repeated queries must agree."""
    for b in range(min(case.batch, DISTINCT)):
        expected = reference.sift_select(
            pool[b].cpu(), query[b].cpu(), case.n_select, noise=case.noise
        )
        variance = selection.variance[b].cpu().double()
        off = variance - torch.tensor(expected.variance, dtype=torch.float64)
        assert off.abs().max() < 1e-5
        if not pool.is_cuda:  # CUDA's state is float32: near rows may change places.
            assert selection.picks[b].tolist() == expected.picks
    for b in range(DISTINCT, case.batch):
        assert torch.equal(selection.picks[b], selection.picks[b % DISTINCT])
