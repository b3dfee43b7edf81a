"""Memory that is freed stays with the process where that is asked for, and goes back elsewhere;
it is asked for in huge pages there alone."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path

import torch
from hullft_ops.ttft.model.memory import keep_freed_memory

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

HUGE_PAGES = """
import re
import sys
from pathlib import Path

import torch
from hullft_ops.ttft.model.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
block = torch.ones(2**28, dtype=torch.uint8)
middle = block.data_ptr() + 2**27
for area in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())[1:]:
    start, end = (int(address, 16) for address in area.split()[0].split("-"))
    if start <= middle < end:
        print("hg" in re.search("VmFlags:(.*)", area)[1].split())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counts of a process's pages")
@pytest.mark.parametrize(("ask", "kept"), [("keep", "True"), ("no", "False")])
def test_freed_memory_is_kept_only_where_asked(ask, kept):
    assert printed(PROGRAM, ask) == ["True", kept]


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the kernel has no huge pages"
)
@pytest.mark.parametrize(("ask", "advised"), [("keep", "True"), ("no", "False")])
def test_memory_is_asked_for_in_huge_pages_only_where_asked(ask, advised):
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        advised = "False"
    assert printed(HUGE_PAGES, ask) == [advised]


def printed(program: str, argument: str) -> list[str]:
    command = [sys.executable, "-c", program, argument]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
