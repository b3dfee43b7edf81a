"""``ReplayAdam.step(repeats=r)`` in bytes a second, against a copy on the same device."""

from dataclasses import asdict
from typing import Any

import torch

from benchmarks.bench_replay import Case, cases, test_replay
from benchmarks.recorder import Recorder
from benchmarks.timing import Comparison, Pace, measure, synchronised

_GOAL_SHARE = 0.85
_COPY_BYTES = 2**30


def run(device: torch.device, *, small: bool) -> dict[str, Any]:
    pace = Pace(0.0, 2, 2) if small else Pace(0.5, 10, 100)
    copied = _copy_bytes_per_second(device, pace, 2**16 if small else _COPY_BYTES)
    wanted = cases("smoke") if small else [c for c in cases("full") if c.gpt2]
    measured = [_measure(case, device, pace, copied) for case in wanted]
    return {
        "copy GB/s": copied / 1e9,
        "comparisons": [asdict(comparison) for comparison in measured],
        "goals": [
            {
                "text": f"replay {comparison.name}: share of the copy's bandwidth",
                "wanted": _GOAL_SHARE,
                "measured": comparison.facts["share of the copy's bandwidth"],
                "met": comparison.facts["share of the copy's bandwidth"] >= _GOAL_SHARE,
            }
            for comparison in ([] if small else measured)
        ],
    }


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
