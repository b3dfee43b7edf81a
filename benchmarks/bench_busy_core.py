"""Selection on two threads while another process keeps a core busy, against one thread.

A thread whose core is taken starts late, and its batch would wait for it: small batches must not
ask for one. On two cores the ratio must not fall below 1 / 1.5.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

import hullft_ops
from benchmarks.bench_selection import Case, assert_as_reference
from benchmarks.pools import problem
from benchmarks.recorder import Recorder

_BUSY = [sys.executable, "-c", "while True: pass"]


def cases(grid: str) -> list[Case]:
    if grid == "smoke":
        return [Case(2, 30, n_select=5)]
    small = Case(1, 30)
    batches = [small, replace(small, batch=2), replace(small, batch=8)]
    if grid == "quick":
        return batches
    return [*batches, Case(2), Case(8), Case(64)]


def test_busy_core(case: Case, recorder: Recorder, device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the threads are those of the CPU")
    pool, query = problem(case, device)
    select = partial(hullft_ops.fw_select, pool, query, case.n_select)
    assert_as_reference(case, pool, query, select())
    with _busy_core():
        recorder.ours(select)
        recorder.peer("one thread", partial(_on_one_thread, select))


@contextmanager
def _busy_core() -> Iterator[None]:
    process = subprocess.Popen(_BUSY)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _on_one_thread(select: partial[hullft_ops.Selection]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        select()
    finally:
        torch.set_num_threads(threads)
