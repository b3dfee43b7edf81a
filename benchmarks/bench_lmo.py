"""One linear-minimisation step of Frank-Wolfe on a batch of queries, each with its own pool."""

from dataclasses import dataclass, replace
from functools import partial

import torch

import hullft_ops
from benchmarks import peers
from benchmarks.pools import DISTINCT, problem
from benchmarks.recorder import Recorder
from hullft_ops import reference

_ROUNDING = 1e-4  # of float32


@dataclass(frozen=True)
class Case:
    batch: int
    candidates: int = 200
    dim: int = 384
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"B{self.batch}-K{self.candidates}-d{self.dim}-{self.dtype}"


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case(2, 30), Case(2, 30, dtype="bfloat16")]
    base = Case(64)
    headline = [base, Case(1), Case(64, dim=1024), Case(1, candidates=5000)]
    if grid == "quick":
        return headline
    return [
        *headline,
        *(replace(base, candidates=count) for count in (50, 1000)),
        *(replace(base, dtype=dtype) for dtype in ("float64", "bfloat16", "float16")),
    ]


def test_lmo(case: Case, recorder: Recorder, device: torch.device) -> None:
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
    recorder.sweep_of(pool)
    recorder.peer("torch", partial(peers.torch_lmo, pool, query, current))
