"""The roots and quotients that csrc/cuda makes of the hardware's estimates, for all mantissas.

nvcc compiles ``estimates.cu`` with the headers of the kernels. The package does not grow for it.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

_SOURCE = Path(__file__).with_name("estimates.cu")
_HEADERS = Path(__file__).parents[2] / "csrc"


def test_all_mantissas(device: torch.device, tmp_path: Path) -> None:
    if device.type != "cuda":
        pytest.skip("the CPU has other estimates")
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    major, minor = torch.cuda.get_device_capability(device)
    program = tmp_path / "estimates"
    compiler = ["nvcc", "-std=c++20", "-O3", f"-arch=sm_{major}{minor}"]
    subprocess.run(
        [*compiler, f"-I{_HEADERS}", str(_SOURCE), "-o", str(program)], check=True
    )
    printed = subprocess.check_output([program], text=True)
    print(printed)
    wrong = {}
    for line in printed.splitlines():
        name, count, _ = line.split()
        wrong[name] = int(count)
    assert len(wrong) >= 8
    assert not any(wrong.values()), wrong
