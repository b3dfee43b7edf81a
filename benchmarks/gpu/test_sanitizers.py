"""compute-sanitizer on a call of every operator in float32."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).parents[2]
# Racecheck has a call of its own, the others share one: each must start before that ends.
_SECONDS = {"memcheck": 150, "initcheck": 150, "synccheck": 150, "racecheck": 440}
_TIMED_OUT = 124  # of the command timeout
_CALLS = "equals_the_cpu and float32 and not many"
# Pools by candidates read sizes that torch's kernels wrote, which a filter by name does not see.
_CALLS_OF = {"initcheck": f"{_CALLS} and not candidates"}


@pytest.mark.timeout(max(_SECONDS.values()) + 30)
@pytest.mark.parametrize("tool", _SECONDS)
def test_nothing_is_reported(
    tool: str,
    device: torch.device,
    seconds_left: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only of our kernels, not of calls of the CUDA API that torch tries and that may fail.

    A tool that does not end has shown nothing, which is a failure.
    """
    if device.type != "cuda":
        pytest.skip("there is nothing to check on the CPU")
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("needs compute-sanitizer")
    # torch's caching allocator would hide the ends of tensors.
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    seconds = max(1, int(min(_SECONDS[tool], seconds_left)))
    command = ["timeout", str(seconds), "compute-sanitizer", "--tool", tool]
    command += ["--kernel-name", "kns=hullft", "--report-api-errors", "no"]
    command += ["--error-exitcode", "9", "--print-limit", "20"]
    command += [sys.executable, "-m", "pytest", "benchmarks/gpu/test_operators.py"]
    command += ["-k", _CALLS_OF.get(tool, _CALLS)]
    command += ["--device", str(device)]
    command += ["-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    done = subprocess.run(
        command,
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode != _TIMED_OUT, f"no end after {seconds} s: {done.stdout}"
    assert done.returncode == 0, done.stdout
