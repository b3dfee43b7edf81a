"""Adapting a model to a prompt, against a plain transformers loop: see `bench_ttft`."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_ttft import Case, cases, measure_ttft
from benchmarks.recorder import Recorder
from benchmarks.timing import Comparison, Pace


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    pace = Pace(0.0, 2, 2) if small else Pace(2.0, 3, 10)
    wanted = cases("smoke") if small else [Case("tiny"), Case("gpt2")]
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in wanted:
            comparison = Comparison("ttft", str(case), asdict(case))
            measure_ttft(case, Recorder(None, device, pace, comparison), device, Path(folder))
            measured.append(asdict(comparison))
            yield {"comparisons": measured}
