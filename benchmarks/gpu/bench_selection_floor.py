"""fw_select as a CUDA graph beside the least time that the card's own rates allow.

The floor is the work at the rates of a copy and of torch's largest product, measured in the same
run. Solves with 0, some and many steps, and without swap passes, tell the start, the steps and the
counts apart. `bench_selection.py` checks the results and times eager calls.
"""

from dataclasses import replace
from functools import partial

import torch

import hullft_ops
from benchmarks.bench_selection import Case, assert_as_reference
from benchmarks.gpu.floors import copy_bytes_per_second, flops_per_second
from benchmarks.gpu.graph import REPLAYS, Graph
from benchmarks.pools import problem
from benchmarks.recorder import Recorder
from benchmarks.timing import measure, synchronised

_STEPS = {"vanilla": (50, 250), "corrective": (4, 12)}
"""Few and many; the corrective variant ends after some 15."""


def cases(smoke: bool) -> list[Case]:
    if smoke:
        small = Case(2, 30, n_select=5)
        return [small, replace(small, variant="corrective")]
    one, many = Case(1), Case(1024)
    return [
        one,
        Case(64),
        many,
        *(replace(Case(batch), variant="corrective") for batch in (1, 64, 1000)),
        replace(many, dim=1024),
        replace(many, dim=1024, dtype="bfloat16"),
    ]


def test_selection_floor(case: Case, recorder: Recorder, device: torch.device) -> None:
    pool, query = problem(case, device)
    select = partial(
        hullft_ops.fw_select, pool, query, case.n_select, variant=case.variant
    )
    assert_as_reference(case, pool, query, select())
    graph = Graph(select, device)
    recorder.ours(graph.replay_in_a_row, calls=REPLAYS)
    seconds = recorder.comparison.seconds
    reading = pool.nbytes / copy_bytes_per_second(device)
    recorder.fact("floor / time", max(reading, _gram_seconds(case, device)) / seconds)
    recorder.fact(
        "us eager", 1e6 * measure(synchronised(select, device), recorder.pace)
    )

    def micros(**options: int) -> tuple[float, float]:
        """Of a solve that only its options end, and the mean number of its steps."""
        solve = partial(select, tol=0.0, **options)
        graph = Graph(solve, device)
        replays = synchronised(graph.replay_in_a_row, device)
        in_a_row = measure(replays, recorder.pace)
        return 1e6 * in_a_row / REPLAYS, float(solve().num_iter.double().mean())

    fewest, largest = _STEPS[case.variant]
    start, _ = micros(max_iter=0, swap_passes=0)
    few, few_steps = micros(max_iter=fewest, swap_passes=0)
    most, most_steps = micros(max_iter=largest, swap_passes=0)
    with_swaps, _ = micros(max_iter=largest)
    recorder.fact("us without steps and swaps", start)
    if most_steps > few_steps:
        recorder.fact("us a step", (most - few) / (most_steps - few_steps))
    recorder.fact("us of swap passes", with_swaps - most)


def _gram_seconds(case: Case, device: torch.device) -> float:
    """Of half a Gram matrix a query on tensor cores, at the rate of torch's product.

    float32 takes three products of TF32.
    """
    is_float32 = case.dtype == "float32"
    rate = flops_per_second(device, getattr(torch, case.dtype), tf32=is_float32)
    pairs = case.candidates * (case.candidates + 1) / 2
    return (3 if is_float32 else 1) * 2 * case.batch * pairs * case.dim / rate
