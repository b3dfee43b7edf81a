"""Memory that is freed goes back to the system until somebody asks the process to keep it."""

import subprocess
import sys

import pytest

PROGRAM = """
from pathlib import Path

import torch
from hullft_ops.ttft.model.memory import keep_freed_memory

BLOCK = 2**28

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def show():
    before = resident()
    block = torch.ones(BLOCK, dtype=torch.uint8)
    held = resident() - before
    del block
    print(held > 0.9 * BLOCK, resident() - before > 0.9 * BLOCK)

show()
assert keep_freed_memory()
show()
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="reads Linux's counts of a process's pages"
)
def test_freed_memory_is_kept_only_where_asked():
    command = [sys.executable, "-c", PROGRAM]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["True", "False", "True", "True"]
