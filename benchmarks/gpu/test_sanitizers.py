"""compute-sanitizer on a call of every operator in float32."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).parents[2]
_SECONDS = 240
_TIMED_OUT = 124  # of the command timeout
# Pools by candidates read sizes that torch's kernels wrote, which a filter by name does not see.
_CALLS = {"initcheck": "equals_the_cpu and float32 and not indexed"}


@pytest.mark.timeout(_SECONDS + 30)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_nothing_is_reported(
    tool: str,
    device: torch.device,
    seconds_left: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only of our kernels, not of calls of the CUDA API that torch tries and that may fail."""
    if device.type != "cuda":
        pytest.skip("there is nothing to check on the CPU")
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("needs compute-sanitizer")
    # torch's caching allocator would hide the ends of tensors.
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    seconds = max(1, int(min(_SECONDS, seconds_left)))
    command = ["timeout", str(seconds), "compute-sanitizer", "--tool", tool]
    command += ["--kernel-name", "kns=hullft", "--report-api-errors", "no"]
    command += ["--error-exitcode", "9", "--print-limit", "20"]
    command += [sys.executable, "-m", "pytest", "benchmarks/gpu/test_operators.py"]
    command += ["-k", _CALLS.get(tool, "equals_the_cpu and float32")]
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
    if done.returncode == _TIMED_OUT:
        reports = [line for line in done.stdout.splitlines() if line.startswith("====")]
        assert not reports[1:], done.stdout  # the first is the tool's name
        pytest.skip(f"{tool} takes longer than the {seconds} seconds it had")
    assert done.returncode == 0, done.stdout
