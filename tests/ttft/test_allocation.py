"""Memory that is freed stays with the process where that is asked for, and goes back elsewhere."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path

import torch
from hullft_ops.ttft.allocation import keep_freed_memory

BLOCK = 2**28

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
block = torch.ones(BLOCK, dtype=torch.uint8)
held = resident() - before
del block
print(held > 0.9 * BLOCK, resident() - before > 0.9 * BLOCK)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counts of a process's pages")
@pytest.mark.parametrize(("ask", "kept"), [("keep", "True"), ("no", "False")])
def test_freed_memory_is_kept_only_where_asked(ask, kept):
    command = [sys.executable, "-c", PROGRAM, ask]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["True", kept]
