"""``ReplayAdam.step(repeats=r)`` in bytes a second, against a copy on the same device."""

from dataclasses import asdict
from typing import Any

import torch

from benchmarks.bench_replay import Case, cases, test_replay
from benchmarks.recorder import Recorder
from benchmarks.timing import Comparison, Pace, measure, synchronised

_GOAL_SHARE = 0.85
_COPY_BYTES = 2**30
# Of a step of one element: csrc/cuda/README.md derives them.
_BYTES, _INSTRUCTIONS = 28, 31
_LANES, _ISSUED = 128, 0.85  # of an SM; the share of its issue slots that is filled


def run(device: torch.device, *, small: bool) -> dict[str, Any]:
    pace = Pace(0.0, 2, 2) if small else Pace(0.5, 10, 100)
    copied = _copy_bytes_per_second(device, pace, 2**16 if small else _COPY_BYTES)
    wanted = cases("smoke") if small else [c for c in cases("full") if c.gpt2]
    measured = [_measure(case, device, pace, copied) for case in wanted]
    goals = [] if small else [
        _goal(comparison, goal_share(case.repeats, copied, _issued_per_second(device)))
        for case, comparison in zip(wanted, measured, strict=True)
    ]  # fmt: skip
    return {
        "copy GB/s": copied / 1e9,
        "comparisons": [asdict(comparison) for comparison in measured],
        "goals": goals,
    }


def _goal(comparison: Comparison, wanted: float) -> dict[str, Any]:
    share = comparison.facts["share of the copy's bandwidth"]
    return {
        "text": f"replay {comparison.name}: share of the copy's bandwidth",
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
    if comparison.gigabytes_per_second is None:
        raise RuntimeError(f"replay {case}: no bytes were counted")
    share = comparison.gigabytes_per_second * 1e9 / copied
    recorder.fact("share of the copy's bandwidth", share)
    return comparison
