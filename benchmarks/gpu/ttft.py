"""Adapting GPT-2's architecture, with CUDA graphs and without, against plain loops.

The weights are random, the embedder counts trigrams: nothing is downloaded. Last comes a
profiler's trace of one adaptation.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_ttft import DIFFERENCE, Adapting, Case
from benchmarks.gpu.goals import goal
from benchmarks.passages import TrigramEmbedder
from benchmarks.recorder import Comparison, Recorder
from benchmarks.timing import Pace, synchronised

_GRAPHS_DIFFERENCE = "difference between with and without graphs, of the change"
_REPETITION = "difference of a repetition without graphs, of the change"
_MILLISECONDS = "ms a prompt"
# For 50 steps.
_GOALS = {None: 200.0, "bfloat16": 100.0}


def run(
    device: torch.device, *, small: bool, beside: str | None = None
) -> Iterator[dict[str, Any]]:
    if small:
        cases = [Case("gpt2-small", 4, lengths="short", texts=12)]
        pace = Pace(0.0, 2, 2)
    else:
        cases = [Case("gpt2", n, dtype=dtype) for dtype in _GOALS for n in (20, 50)]
        pace = Pace(2.0, 3, 20)
    results: dict[str, Any] = {"comparisons": [], "goals": []}
    for case in cases:
        adapting = Adapting(case, device, TrigramEmbedder())
        comparison = Comparison("ttft", str(case))
        _measure(case, adapting, Recorder(comparison, device, pace))
        results["comparisons"].append(asdict(comparison))
        allowed = case.allowed_difference
        results["goals"].append(goal(comparison, DIFFERENCE, allowed))
        results["goals"].append(goal(comparison, _GRAPHS_DIFFERENCE, allowed))
        if case.n_select == 50:
            milliseconds = _GOALS[case.dtype]
            results["goals"].append(goal(comparison, _MILLISECONDS, milliseconds))
        yield results
    if beside is not None:
        trace = Path(f"{beside}.trace.json.gz")
        launches = _write_trace(adapting, device, trace)
        yield results | {"trace": trace.name, "graph launches": launches}


def _measure(case: Case, adapting: Adapting, recorder: Recorder) -> None:
    device = adapting.model.device
    eager = Adapting(case, device, TrigramEmbedder(), graphs=False)
    adapting.adapt()  # captures
    end = eager.end()
    # Record a difference and go on: the times are still worth having.
    recorder.fact(DIFFERENCE, adapting.difference())
    recorder.fact(_GRAPHS_DIFFERENCE, adapting.apart(adapting.end(), end))
    # torch's attention may add up in another order, and then Adam goes another way.
    recorder.fact(_REPETITION, adapting.apart(eager.end(), end))
    adapting.time(recorder)
    recorder.fact(_MILLISECONDS, 1e3 * recorder.comparison.seconds)
    recorder.peer("without graphs", eager.adapt)
    with adapting.finetuner.adapted(adapting.prompt) as adaptation:
        for stage, seconds in adaptation.seconds.items():
            recorder.fact(f"{stage}, seconds", seconds)


def _write_trace(adapting: Adapting, device: torch.device, path: Path) -> int:
    """A trace for chrome://tracing, compressed because the name ends with ``.gz``.

    Returns:
        How many launches of CUDA graphs are in it: 0 means that no pass was replayed.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        synchronised(adapting.adapt, device)()
    profiler.export_chrome_trace(str(path))
    launches = [e.count for e in profiler.key_averages() if e.key == "cudaGraphLaunch"]
    return sum(launches)
