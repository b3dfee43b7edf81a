"""``ReplayAdam.step(repeats=r)`` in bytes a second, against a copy on the same device.

The bandwidth is that of a captured graph's replays: from Python the steps of many tensors take the
host about as long as the device, and a copy does not. The comparisons with torch's optimizers are
of calls from Python, theirs and ours.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import parameters
from benchmarks.bench_replay import Case, cases, test_replay
from benchmarks.gpu.graphs import REPLAY_SECONDS, Graph
from benchmarks.recorder import Recorder
from benchmarks.timing import Comparison, Pace, measure, synchronised
from hullft_ops import ReplayAdam

_GOAL_SHARE = 0.85
_SHARE = "share of the copy's bandwidth"
_COPY_BYTES = 2**30
# Of a step of one element: csrc/cuda/README.md derives them.
_BYTES, _INSTRUCTIONS = 28, 31
_LANES, _ISSUED = 128, 0.85  # of an SM; the share of its issue slots that is filled


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    pace = Pace(0.0, 2, 2) if small else Pace(0.5, 4, 100)
    copied = _copy_bytes_per_second(device, pace, 2**16 if small else _COPY_BYTES)
    measured: list[dict[str, Any]] = []
    goals = []
    for case in cases("smoke") if small else [c for c in cases("full") if c.gpt2]:
        comparison = _measure(case, device, pace, copied)
        measured.append(asdict(comparison))
        if not small:
            wanted = goal_share(case.repeats, copied, _issued_per_second(device))
            goals.append(_goal(comparison, wanted))
        yield {"copy GB/s": copied / 1e9, "comparisons": measured, "goals": goals}


def _goal(comparison: Comparison, wanted: float) -> dict[str, Any]:
    share = comparison.facts[_SHARE]
    return {
        "text": f"replay {comparison.name}: {_SHARE}",
        "wanted": wanted,
        "measured": share,
        "met": share >= wanted,
    }


def goal_share(repeats: int, copied: float, issued: float) -> float:
    """Of the copy's bandwidth; less where the steps' arithmetic takes longer than the memory.

    Args:
        copied: bytes a second of a copy.
        issued: instructions a second, of single elements, that the device can issue.
    """
    memory, arithmetic = _BYTES / copied, repeats * _INSTRUCTIONS / (_ISSUED * issued)
    return _GOAL_SHARE * min(1.0, memory / arithmetic)


def _issued_per_second(device: torch.device) -> float:
    card = torch.cuda.get_device_properties(device)
    return float(_LANES * card.multi_processor_count * card.clock_rate * 1000)  # rates are in kHz


def _copy_bytes_per_second(device: torch.device, pace: Pace, size: int) -> float:
    """Bytes read and bytes written."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = measure(synchronised(lambda: target.copy_(source), device), pace)
    if not torch.equal(target[-1], source[-1]):
        raise RuntimeError("the copy did not copy")
    return 2 * size / timing.seconds


def _measure(case: Case, device: torch.device, pace: Pace, copied: float) -> Comparison:
    comparison = Comparison("replay", str(case), asdict(case))
    recorder = Recorder(None, device, pace, comparison)
    test_replay(case, recorder, device)
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
