"""Selection: right or not, and where its microseconds go.

At B = 1 latency counts, at B = 1024 throughput does. Kernels are timed with 0, 50 and 250 steps,
and with and without swaps of the counts, so that start, steps and counts come apart.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product

import torch

import hullft_ops
from benchmarks.bench_selection import ALLOWED_DIFFERENCES, Case, differences
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.floors import copy_bytes_per_second, flops_per_second
from benchmarks.gpu.graphs import Graph
from benchmarks.gpu.kernels import host_seconds, launched
from benchmarks.gpu.tasks import Task
from benchmarks.pools import problem
from benchmarks.timing import Pace, measure, synchronised

# Of one warp that takes 250 steps: csrc/cuda/README.md. A prediction.
_LATENCY_FLOOR = 50e-6
_STEPS, _SWAPS = (0, 50, 250), (0, 2)


def tasks(device: torch.device, *, small: bool) -> Iterator[Task]:
    if small:
        cases = [Case(1, 30, n_select=5), Case(4, 30, n_select=5)]
    else:
        cases = [Case(batch, dim=dim) for batch in (1, 1024) for dim in (384, 1024)]
    others = [
        replace(cases[-1], dtype="bfloat16"),
        replace(cases[0], variant="pairwise"),
        replace(cases[0], variant="away"),
    ]
    for case in [*cases, *others]:
        yield f"right {case}", partial(_check, case, device)
        yield f"time {case}", partial(_time, case, device, small)
        if case in cases:
            yield f"kernels {case}", partial(_split, case, device, small)


# The problem of one case at a time: at B = 1024 a pool has up to 0.8 GB.
_problem = lru_cache(maxsize=1)(problem)


def _check(case: Case, device: torch.device, findings: Findings) -> None:
    pool, query = _problem(case, device)
    selection = hullft_ops.fw_select(pool, query, case.n_select, variant=case.variant)
    findings.fact("steps, mean", float(selection.num_iter.double().mean()))
    for name, difference in differences(case, pool, query, selection).items():
        findings.must(name, difference, ALLOWED_DIFFERENCES[name])


def _time(case: Case, device: torch.device, small: bool, findings: Findings) -> None:
    pool, query = _problem(case, device)
    select = partial(
        hullft_ops.fw_select, pool, query, case.n_select, variant=case.variant
    )
    pace = Pace(0.0, 2, 2) if small else Pace(0.3, 10, 300)
    findings.fact("eager, seconds", measure(synchronised(select, device), pace))
    findings.fact("host, seconds", host_seconds(select, device))
    seconds = Graph(select, device).seconds()
    reading = pool.nbytes / copy_bytes_per_second(device, small)
    floor = max(reading, _gram_seconds(case, device, small), _LATENCY_FLOOR)
    findings.fact("bytes a second, of a copy's", reading / seconds)
    findings.speed(f"fw_select {case}", seconds, floor)


def _gram_seconds(case: Case, device: torch.device, small: bool) -> float:
    """Of half a Gram matrix a query on tensor cores, at the rate of torch's product.

    float32 takes three products of TF32.
    """
    is_float32 = case.dtype == "float32"
    rate = flops_per_second(device, getattr(torch, case.dtype), is_float32, small)
    pairs = case.candidates * (case.candidates + 1) / 2
    return (3 if is_float32 else 1) * 2 * case.batch * pairs * case.dim / rate


def _split(case: Case, device: torch.device, small: bool, findings: Findings) -> None:
    pool, query = _problem(case, device)
    times = 2 if small else 20
    steps: dict[tuple[int, int], float] = {}
    micros: dict[tuple[int, int], float] = {}
    for setting in product(_STEPS, _SWAPS):
        max_iter, swap_passes = setting
        select = partial(
            hullft_ops.fw_select,
            pool,
            query,
            case.n_select,
            max_iter=max_iter,
            tol=0.0,
            swap_passes=swap_passes,
        )
        steps[setting] = float(select().num_iter.double().mean())
        kernels = launched(select, device, times)
        of_call = {name: 1e6 * k.seconds / times for name, k in kernels.items()}
        micros[setting] = sum(of_call.values())
        text = f"{max_iter} steps, {swap_passes} swap passes"
        findings.fact(f"{text}: microseconds", of_call)
    least, middle, most = _STEPS
    findings.fact("microseconds without steps and swaps", micros[least, 0])
    taken = steps[most, 0] - steps[middle, 0]
    if taken > 0:  # a full support may have ended both
        of_steps = micros[most, 0] - micros[middle, 0]
        findings.fact("microseconds of a step", of_steps / taken)
    of_swaps = micros[most, _SWAPS[-1]] - micros[most, 0]
    findings.fact("microseconds of the swap passes", of_swaps)
