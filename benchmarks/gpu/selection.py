"""Selection at B = 1, where latency counts, and at B = 1024, where throughput does."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

import hullft_ops
from benchmarks.bench_selection import (
    ALLOWED_DIFFERENCES,
    Case,
    differences,
    problem,
    time_numpy,
)
from benchmarks.gpu.goals import goal
from benchmarks.gpu.graphs import REPLAY_SECONDS, Graph
from benchmarks.recorder import Comparison, Recorder
from benchmarks.timing import Pace

_GOAL_SECONDS = 100e-6  # of one query


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    if small:
        cases = [Case(1, 30, n_select=5), Case(4, 30, n_select=5)]
        pace = Pace(0.0, 2, 2)
    else:
        cases = [
            Case(1, dim=1024),
            Case(1024, dim=1024),
            Case(1024, dim=1024, dtype="bfloat16"),
            Case(1, dim=1024, variant="pairwise"),
        ]
        pace = Pace(1.0, 10, 300)
    results: dict[str, Any] = {"comparisons": [], "goals": []}
    for case in cases:
        comparison = _measure(case, device, pace)
        results["comparisons"].append(asdict(comparison))
        for fact, most in ALLOWED_DIFFERENCES.items():
            results["goals"].append(goal(comparison, fact, most))
        if not small and case == cases[0]:
            results["goals"].append(goal(comparison, REPLAY_SECONDS, _GOAL_SECONDS))
        yield results


def _measure(case: Case, device: torch.device, pace: Pace) -> Comparison:
    """Measure a case. The facts include the number of steps: a full support ends a solve early."""
    pool, query = problem(case, device)
    select = partial(
        hullft_ops.fw_select, pool, query, case.n_select, variant=case.variant
    )
    selection = select()
    comparison = Comparison("selection", str(case))
    recorder = Recorder(comparison, device, pace)
    # Record a difference and go on: the times are still worth having.
    for name, difference in differences(case, pool, query, selection).items():
        recorder.fact(name, difference)
    recorder.fact("steps, mean", float(selection.num_iter.double().mean()))
    recorder.ours(select)
    recorder.fact("queries a second", case.batch / comparison.seconds)
    recorder.fact(REPLAY_SECONDS, Graph(select, device).seconds())
    words = pool.view(torch.int32)
    recorder.sweep(words.amax, words.numel() * words.element_size())
    time_numpy(case, recorder)
    return comparison
