"""The roots and quotients that csrc/cuda makes of the hardware's estimates, for all mantissas.

nvcc compiles ``estimates.cu`` with the headers of the kernels. The package does not grow for it.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.step import ROOT
from benchmarks.gpu.tasks import Task

_SOURCE = Path(__file__).with_suffix(".cu")


def tasks(device: torch.device, *, small: bool) -> Iterator[Task]:
    yield "all mantissas", partial(_try_all, device)


def _try_all(device: torch.device, findings: Findings) -> None:
    major, minor = torch.cuda.get_device_capability(device)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "estimates"
        compiler = ["nvcc", "-std=c++20", "-O3", f"-arch=sm_{major}{minor}"]
        command = [*compiler, f"-I{ROOT / 'csrc'}", str(_SOURCE), "-o", str(program)]
        subprocess.run(command, check=True)
        printed = subprocess.check_output([program], text=True)
    for line in printed.splitlines():
        name, wrong, largest = line.split()
        findings.must(f"{name}, wrong ones", int(wrong), 0)
        findings.fact(f"{name}, largest error", float(largest))
