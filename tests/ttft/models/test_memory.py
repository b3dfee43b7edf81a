"""Memory that is freed, and memory that runs out."""

import subprocess
import sys

import pytest
import torch

from hullft_ops.ttft.models.memory import is_out_of_memory, out_of_memory_explained

PROGRAM = """
from pathlib import Path

import torch
from hullft_ops.ttft.models.memory import keep_freed_memory, return_freed_memory

BLOCK = 2**28

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def is_kept():
    before = resident()
    block = torch.ones(BLOCK, dtype=torch.uint8)
    del block
    return resident() - before > 0.9 * BLOCK

assert not is_kept()
assert keep_freed_memory()
start = resident()
assert is_kept()
return_freed_memory()
assert resident() - start < 0.1 * BLOCK
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="reads Linux's counts of a process's pages"
)
def test_freed_memory_is_kept_only_where_asked():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_a_failed_allocation_is_explained():
    with (
        pytest.raises(torch.OutOfMemoryError, match="lower it .*can't allocate memory"),
        out_of_memory_explained("lower it"),
    ):
        torch.empty(2**60, dtype=torch.uint8)

    assert is_out_of_memory(MemoryError())


def test_another_error_is_left_as_it_is():
    with (
        pytest.raises(RuntimeError, match="^of the model$"),
        out_of_memory_explained("lower it"),
    ):
        raise RuntimeError("of the model")
