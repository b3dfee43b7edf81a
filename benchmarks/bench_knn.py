"""The nearest rows on a batch of queries, each with its own pool, with residual and gap."""

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
    n_select: int = 50
    dtype: str = "float32"

    def __str__(self) -> str:
        shape = f"B{self.batch}-K{self.candidates}-d{self.dim}-N{self.n_select}"
        return f"{shape}-{self.dtype}"


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        small = Case(2, 30, n_select=5)
        return [small, replace(small, dtype="bfloat16")]
    base = Case(64)
    headline = [base, Case(1), Case(64, dim=1024), Case(1, candidates=5000)]
    if grid == "quick":
        return headline
    return [
        *headline,
        *(replace(base, candidates=count) for count in (50, 1000)),
        *(replace(base, dtype=dtype) for dtype in ("float64", "bfloat16", "float16")),
    ]


def test_knn(case: Case, recorder: Recorder, device: torch.device) -> None:
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
    recorder.sweep_of(pool)
    recorder.peer("torch", partial(peers.torch_knn, pool, query, case.n_select))
