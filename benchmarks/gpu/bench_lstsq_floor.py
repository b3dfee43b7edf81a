"""simplex_lstsq as a CUDA graph where its sizes are extreme, beside a read of its inputs.

`csrc/cuda/README.md` predicts these times. `bench_simplex.py` compares with peers.
"""

from dataclasses import dataclass
from functools import partial

import torch

import hullft_ops
from benchmarks import peers
from benchmarks.gpu.floors import copy_bytes_per_second
from benchmarks.gpu.graph import REPLAYS, Graph
from benchmarks.recorder import Recorder


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    rows: int
    dim: int
    shares_pool: bool

    def __str__(self) -> str:
        return f"{self.name}-B{self.batch}-K{self.rows}-d{self.dim}"


def cases(smoke: bool) -> list[Case]:
    if smoke:
        return [Case("unmixing", 3, 5, 20, shares_pool=True)]
    return [
        Case("gradients", 1, 40, 1_000_000, shares_pool=True),
        Case("gradients", 1, 2, 1_000_000_000, shares_pool=True),
        Case("control", 10_000, 50, 100, shares_pool=False),
        Case("unmixing", 1_000_000, 16, 200, shares_pool=True),
    ]


def test_lstsq_floor(case: Case, recorder: Recorder, device: torch.device) -> None:
    """Queries are mixtures of few rows with noise; for gradients, the query is 0."""
    random = partial(torch.randn, device=device)
    pools = () if case.shares_pool else (case.batch,)
    pool = random(*pools, case.rows, case.dim)
    query = torch.zeros(case.batch, case.dim, device=device)
    if case.name != "gradients":
        shares = random(case.batch, case.rows).mul_(4).softmax(1)
        query = peers.times(shares, pool)
        query += 0.1 * random(*query.shape)
    solve = partial(hullft_ops.simplex_lstsq, pool, query)
    graph = Graph(solve, device)
    recorder.ours(graph.replay_in_a_row, calls=REPLAYS)
    reading = (pool.nbytes + query.nbytes) / copy_bytes_per_second(device)
    recorder.fact("floor / time", reading / recorder.comparison.seconds)
    recorder.fact("cycles", graph.outputs[-1].double().mean().item())
    weights, gap = graph.outputs[0], graph.outputs[2]
    assert (weights.sum(1) - 1).abs().max() <= 1e-5
    assert gap.isfinite().all()
