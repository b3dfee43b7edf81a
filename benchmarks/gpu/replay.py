"""``ReplayAdam.step(repeats=r)`` in bytes a second, against a copy on the same device.

The bandwidth comes from replays of a captured graph. From Python, steps on many tensors would take
the host about as long as the device, unlike a copy. The comparisons with torch's optimizers use
calls from Python on both sides.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import parameters
from benchmarks.bench_replay import DIFFERENCE, Case, cases, measure_replay
from benchmarks.gpu.goals import goal
from benchmarks.gpu.graphs import REPLAY_SECONDS, Graph
from benchmarks.recorder import Recorder
from benchmarks.timing import Comparison, Pace, measure, synchronised
from hullft_ops import ReplayAdam

_GOAL_SHARE = 0.85
_SHARE = "share of the copy's bandwidth"
_COPY_BYTES = 2**30
# For a step of one element; csrc/cuda/README.md derives them.
_BYTES, _INSTRUCTIONS = 28, 31
_CYCLES = 10**8  # a kernel spins this long to measure the clock
_SLOWEST, _FASTEST = 3e8, 4e9  # credible cycles a second
_LANES, _ISSUED = 128, 0.85  # of an SM; the share of issue slots that it fills


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    pace = Pace(0.0, 2, 2) if small else Pace(0.5, 4, 100)
    copied = _copy_bytes_per_second(device, pace, 2**16 if small else _COPY_BYTES)
    clock = _clock(device) if device.type == "cuda" else None
    measured: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    for case in cases("smoke") if small else [c for c in cases("full") if c.gpt2]:
        comparison = _measure(case, device, pace, copied)
        measured.append(asdict(comparison))
        goals.append(goal(comparison, DIFFERENCE, 1))
        if not small:
            wanted = goal_share(case.repeats, copied, _issued_per_second(clock, device))
            goals.append(goal(comparison, _SHARE, wanted, at_least=True))
        found = {"copy GB/s": copied / 1e9, "SM clock GHz": clock and clock / 1e9}
        yield {**found, "comparisons": measured, "goals": goals}


def goal_share(repeats: int, copied: float, issued: float) -> float:
    """The share of a copy's bandwidth to reach. Less if arithmetic takes longer than memory.

    Args:
        copied: a copy's bytes a second.
        issued: instructions on single elements that the device can issue in a second.
    """
    memory, arithmetic = _BYTES / copied, repeats * _INSTRUCTIONS / (_ISSUED * issued)
    return _GOAL_SHARE * min(1.0, memory / arithmetic)


def _issued_per_second(clock: float | None, device: torch.device) -> float:
    if clock is None:
        return math.inf
    return (
        _LANES * torch.cuda.get_device_properties(device).multi_processor_count * clock
    )


def _clock(device: torch.device) -> float | None:
    """The multiprocessors' present cycles a second, or the most they can do; None if unknown.

    Some versions of torch have the highest clock among the properties. A card seldom keeps it.
    """
    spin = getattr(torch.cuda, "_sleep", None)
    if spin is not None:
        seconds = measure(
            synchronised(lambda: spin(_CYCLES), device), Pace(0.0, 3, 3)
        ).seconds
        if _SLOWEST <= _CYCLES / seconds <= _FASTEST:
            return float(_CYCLES / seconds)
    kilohertz = getattr(torch.cuda.get_device_properties(device), "clock_rate", None)
    return None if kilohertz is None else kilohertz * 1e3


def _copy_bytes_per_second(device: torch.device, pace: Pace, size: int) -> float:
    """Bytes a second, read and written together."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = measure(synchronised(lambda: target.copy_(source), device), pace)
    if not torch.equal(target[-1], source[-1]):
        raise RuntimeError("the copy did not copy")
    return 2 * size / timing.seconds


def _measure(case: Case, device: torch.device, pace: Pace, copied: float) -> Comparison:
    comparison = Comparison("replay", str(case), asdict(case))
    recorder = Recorder(None, device, pace, comparison)
    measure_replay(case, recorder, device)
    if comparison.bytes_moved is None:
        raise RuntimeError(f"replay {case}: no bytes were counted")
    seconds = _graph(case, device).seconds()
    recorder.fact(REPLAY_SECONDS, seconds)
    recorder.fact(_SHARE, comparison.bytes_moved / seconds / copied)
    return comparison


def _graph(case: Case, device: torch.device) -> Graph:
    params = parameters.random_tensors(case.shapes(), 0.02, device, seed=0)
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    optimizer = ReplayAdam(params, lr=5e-5, capturable=True)

    def step() -> list[torch.Tensor]:
        optimizer.step(repeats=case.repeats)
        return params

    return Graph(step, device)
