"""``ReplayAdam.step(repeats=r)``: right or not, and its bytes a second against a copy's.

The bandwidth comes from replays of a captured graph. From Python, steps on many tensors take the
host about as long as the device, unlike a copy. `bench_replay.py` compares with torch's optimizers.
"""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import parameters
from benchmarks.bench_replay import (
    Case,
    cases,
    largest_difference,
)
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.floors import copy_bytes_per_second
from benchmarks.gpu.graphs import Graph
from benchmarks.gpu.kernels import host_seconds
from benchmarks.gpu.tasks import Task
from hullft_ops import ReplayAdam


def tasks(device: torch.device, *, small: bool) -> Iterator[Task]:
    measured = cases("smoke") if small else [Case(repeats) for repeats in (1, 2, 4, 8)]
    for case in measured:
        yield f"right {case}", partial(_check, case, device)
    for case in measured:
        yield f"time {case}", partial(_time, case, device, small)


def _check(case: Case, device: torch.device, findings: Findings) -> None:
    difference = largest_difference(case, device)
    findings.must("difference from torch, of the allowed", difference, 1)


def _time(case: Case, device: torch.device, small: bool, findings: Findings) -> None:
    params = parameters.random_tensors(case.shapes(), 0.02, device, seed=0)
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    optimizer = ReplayAdam(params, lr=5e-5, capturable=True)

    def step() -> list[torch.Tensor]:
        optimizer.step(repeats=case.repeats)
        return params

    findings.fact("host, seconds", host_seconds(step, device))
    seconds = Graph(step, device).seconds()
    floor = case.bytes_moved / copy_bytes_per_second(device, small)
    findings.fact("GB/s", case.bytes_moved / seconds / 1e9)
    findings.speed(f"ReplayAdam {case}", seconds, floor)
