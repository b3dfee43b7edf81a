"""Microseconds of each kernel that fw_select launches, as torch's profiler says.

One that starts while the one before it still runs counts from its own start.
"""

import re
from collections import defaultdict
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

import hullft_ops
from benchmarks.bench_selection import Case
from benchmarks.pools import problem
from benchmarks.recorder import Recorder

_CALLS = 20
_NAME = re.compile(r"hullft::.*?(\w+_kernel)\b")


def cases(smoke: bool) -> list[Case]:
    if smoke:
        return [Case(2, 30, n_select=5)]
    vanilla = [Case(batch, dim=dim) for batch in (1, 64, 1024) for dim in (384, 1024)]
    few = [Case(1, 20_000), Case(1, 5000, dim=4096)]  # solved in rounds
    corrective = [*(Case(batch) for batch in (1, 64, 1000, 16_384)), *few]
    corrective += [Case(batch, 2000) for batch in (1, 64)]
    return [*vanilla, *few, *(replace(c, variant="corrective") for c in corrective)]


def test_selection_kernels(
    case: Case, recorder: Recorder, device: torch.device
) -> None:
    pool, query = problem(case, device)
    select = partial(
        hullft_ops.fw_select, pool, query, case.n_select, variant=case.variant
    )
    recorder.ours(select)
    if device.type != "cuda":
        return
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(_CALLS):
            select()
        torch.cuda.synchronize(device)
    micros: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events() or ():
        name = _NAME.search(event.name)
        if name and event.device_type.name == "CUDA":
            micros[name[1]].append(event.time_range.elapsed_us())
    for kernel, launches in micros.items():
        recorder.fact(f"us {kernel}", median(launches))
