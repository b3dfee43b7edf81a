"""Microseconds of each kernel that fw_select launches, as torch's profiler says."""

from functools import partial

import pytest
import torch

import hullft_ops
from benchmarks.bench_selection import Case
from benchmarks.gpu.kernels import microseconds_of_kernels
from benchmarks.pools import problem
from benchmarks.recorder import Recorder

_CALLS = 20


def cases(smoke: bool) -> list[Case]:
    if smoke:
        return [Case(2, 30, n_select=5)]
    vanilla = [Case(batch, dim=dim) for batch in (1, 64, 1024) for dim in (384, 1024)]
    return [*vanilla, *(Case(batch, variant="corrective") for batch in (1, 64, 1000))]


def test_selection_kernels(
    case: Case, recorder: Recorder, device: torch.device
) -> None:
    pool, query = problem(case, device)
    select = partial(
        hullft_ops.fw_select, pool, query, case.n_select, variant=case.variant
    )
    try:
        kernels = microseconds_of_kernels(select, device, _CALLS)
    except ValueError as error:
        pytest.skip(str(error))
    recorder.ours(select)
    for kernel, micros in kernels.items():
        recorder.fact(f"us {kernel}", micros)
