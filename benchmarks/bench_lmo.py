"""One linear-minimisation step of Frank-Wolfe on a batch of queries, each with its own pool."""

from functools import partial

import torch

import hullft_ops
from benchmarks import peers
from benchmarks.pools import DISTINCT, PoolCase, cases_of_one_sweep, problem
from benchmarks.recorder import Recorder
from hullft_ops import reference

_ROUNDING = 1e-4  # of float32


def cases(smoke: bool) -> list[PoolCase]:
    return cases_of_one_sweep(smoke, n_select=1)


def test_lmo(case: PoolCase, recorder: Recorder, device: torch.device) -> None:
    pool, query = problem(case, device)
    # The middle of the five nearest rows.
    current = pool[:, :5].float().mean(1).to(pool.dtype)
    step = partial(hullft_ops.fw_lmo, pool, query, current)
    ours = step()
    exact = peers.torch_lmo(pool.double(), query.double(), current.double())
    for b in range(min(case.batch, DISTINCT)):
        expected = reference.fw_lmo(pool[b].cpu(), query[b].cpu(), current[b].cpu())
        assert ours.vertex[b] == exact[0][b] == expected.vertex
        for value in (ours.gamma[b], exact[1][b]):
            assert abs(value.item() - expected.gamma) < _ROUNDING
        assert abs(ours.gap[b].item() - expected.gap) < _ROUNDING
    recorder.ours(step)
    recorder.peer("torch", partial(peers.torch_lmo, pool, query, current))
