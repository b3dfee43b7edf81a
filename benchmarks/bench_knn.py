"""The nearest rows on a batch of queries, each with its own pool, with residual and gap."""

from functools import partial

import torch

import hullft_ops
from benchmarks import peers
from benchmarks.pools import DISTINCT, PoolCase, cases_of_one_sweep, problem
from benchmarks.recorder import Recorder
from hullft_ops import reference

_ROUNDING = 1e-4  # of float32


def cases(smoke: bool) -> list[PoolCase]:
    return cases_of_one_sweep(smoke, n_select=50)


def test_knn(case: PoolCase, recorder: Recorder, device: torch.device) -> None:
    pool, query = problem(case, device)
    select = partial(hullft_ops.knn_select, pool, query, case.n_select)
    ours = select()
    exact = peers.torch_knn(pool.double(), query.double(), case.n_select)
    for b in range(min(case.batch, DISTINCT)):
        expected = reference.knn_select(pool[b].cpu(), query[b].cpu(), case.n_select)
        assert ours.indices[b].tolist() == expected.indices.tolist()
        # torch takes equal rows in any order.
        for residual in (ours.residual[b], exact[0][b]):
            assert abs(residual.item() - expected.residual) < _ROUNDING
        for gap in (ours.gap[b], exact[1][b]):
            assert abs(gap.item() - expected.gap) < _ROUNDING
    recorder.ours(select)
    recorder.peer("torch", partial(peers.torch_knn, pool, query, case.n_select))
