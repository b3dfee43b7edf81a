"""``ReplayAdam.step(repeats=r)`` in bytes a second, against a copy on the same device.

The bandwidth comes from replays of a captured graph. From Python, steps on many tensors would take
the host about as long as the device, unlike a copy. The comparisons with torch's optimizers use
calls from Python on both sides.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import parameters
from benchmarks.bench_replay import (
    DIFFERENCE,
    Case,
    cases,
    largest_difference,
    time_replay,
)
from benchmarks.gpu.goals import goal
from benchmarks.gpu.graphs import REPLAY_SECONDS, Graph
from benchmarks.recorder import Comparison, Recorder
from benchmarks.timing import Pace, measure, synchronised
from hullft_ops import ReplayAdam

_SHARE = "share of the copy's bandwidth"
# By the number of steps. Eight take an H100 longer than their bytes: csrc/cuda/README.md.
_GOALS = {1: 0.85, 2: 0.85, 4: 0.85, 8: 0.72}
_COPY_BYTES = 2**30


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    pace = Pace(0.0, 2, 2) if small else Pace(0.5, 4, 100)
    copied = _copy_bytes_per_second(device, pace, 2**16 if small else _COPY_BYTES)
    measured = cases("smoke") if small else [Case(repeats) for repeats in _GOALS]
    results: dict[str, Any] = {"copy GB/s": copied / 1e9}
    results |= {"comparisons": [], "goals": []}
    for case in measured:
        comparison = Comparison("replay", str(case))
        recorder = Recorder(comparison, device, pace)
        recorder.fact(DIFFERENCE, largest_difference(case, device))
        time_replay(case, recorder, device)
        seconds = _graph(case, device).seconds()
        recorder.fact(REPLAY_SECONDS, seconds)
        recorder.fact(_SHARE, case.bytes_moved / seconds / copied)
        results["comparisons"].append(asdict(comparison))
        results["goals"].append(goal(comparison, DIFFERENCE, 1))
        if not small:
            share = _GOALS[case.repeats]
            results["goals"].append(goal(comparison, _SHARE, share, at_least=True))
        yield results


def _copy_bytes_per_second(device: torch.device, pace: Pace, size: int) -> float:
    """Bytes a second, read and written together."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = measure(synchronised(lambda: target.copy_(source), device), pace)
    if not torch.equal(target[-1], source[-1]):
        raise RuntimeError("the copy did not copy")
    return 2 * size / seconds


def _graph(case: Case, device: torch.device) -> Graph:
    params = parameters.random_tensors(case.shapes(), 0.02, device, seed=0)
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    optimizer = ReplayAdam(params, lr=5e-5, capturable=True)

    def step() -> list[torch.Tensor]:
        optimizer.step(repeats=case.repeats)
        return params

    return Graph(step, device)
