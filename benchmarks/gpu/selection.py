"""Selection at B = 1, where latency counts, and at B = 1024, where throughput does."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

import hullft_ops
from benchmarks.bench_selection import (
    ALLOWED_DIFFERENCES,
    Case,
    differences,
    time_numpy,
)
from benchmarks.gpu.goals import goal
from benchmarks.gpu.graphs import REPLAY_SECONDS, Graph
from benchmarks.pools import distinct_pools, tiled
from benchmarks.recorder import Recorder
from benchmarks.timing import Comparison, Pace

_MAX_ITER = 250
_GOAL_SECONDS = 100e-6


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    if small:
        cases = [Case(1, 30, 384, 5), Case(4, 30, 384, 5)]
    else:
        cases = [Case(1, 200, 1024), Case(1024, 200, 1024)]
        cases += [
            Case(1024, 200, 1024, dtype="bfloat16"),
            Case(1, 200, 1024, variant="pairwise"),
        ]
    pace = Pace(0.0, 2, 2) if small else Pace(1.0, 10, 300)
    measured: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    for case in cases:
        comparison = _measure(case, device, pace)
        measured.append(asdict(comparison))
        goals += [
            goal(comparison, fact, most) for fact, most in ALLOWED_DIFFERENCES.items()
        ]
        if not small and case == cases[0]:
            goals.append(goal(comparison, REPLAY_SECONDS, _GOAL_SECONDS))
        yield {"comparisons": measured, "goals": goals}


def _measure(case: Case, device: torch.device, pace: Pace) -> Comparison:
    """Measure a case. The facts include the number of steps: a full support ends a solve early."""
    distinct, queries = distinct_pools(case.candidates, case.dim)
    dtype = getattr(torch, case.dtype)
    pool = tiled(distinct.to(dtype), case.batch).to(device)
    query = tiled(queries.to(dtype), case.batch).to(device)

    def select() -> hullft_ops.Selection:
        return hullft_ops.fw_select(
            pool, query, case.n_select, max_iter=_MAX_ITER, variant=case.variant
        )

    selection = select()
    comparison = Comparison("selection", str(case), asdict(case))
    recorder = Recorder(None, device, pace, comparison)
    # Record a difference and go on: the times are still worth having.
    for name, difference in differences(case, pool, query, selection).items():
        recorder.fact(name, difference)
    recorder.ours(select)
    recorder.fact("steps, mean", float(selection.num_iter.double().mean()))
    recorder.fact("queries a second", case.batch / comparison.seconds)
    recorder.fact(REPLAY_SECONDS, Graph(select, device).seconds())
    words = pool.view(torch.int32)
    recorder.sweep(words.amax, case.pool_bytes)
    time_numpy(case, recorder, distinct, queries)
    return comparison
