"""The steps of the GPU check, the most telling first."""

import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.step import ROOT, Step, installed

# Of all steps; a build of four minutes fits in.
BUDGET_SECONDS = 530
_SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
_MOST_PROCESSES = 8  # for tests on one GPU
# Tests that do not use the CUDA kernels, or that request them themselves.
_OTHER_TESTS = (
    "test_check_sass",
    "test_compile_gate",
    "test_contributing",
    "test_cuda_build",
    "test_cuda_errors",
    "test_distribution",
    "test_examples",
    "test_fuzz_corpus",
    "test_packaging",
    "test_quotient_proof",
    "test_readme",
    "test_security",
    "test_tf32_gram",
)
# An operator that returns tensors, and one that writes to lists of them.
_REHEARSED_TESTS = ("test_knn_select", "test_grad_accumulate")


def operator_tests() -> list[str]:
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    return [
        str(path.relative_to(ROOT)) for path in tests if path.stem not in _OTHER_TESTS
    ]


def plan(device: str) -> list[Step]:
    """The steps in order; their budgets add up to at most ``BUDGET_SECONDS``."""
    build = Step(
        "build",
        245,
        [sys.executable, "-m", "benchmarks.gpu.build", "--device", device],
        read=None,
        resumes=False,
        tools=("nvcc",),
    )
    return [
        build,
        _measurement("environment", 15, device),
        _measurement("operators", 25, device),
        _measurement("graphs", 40, device, ("numpy", "transformers")),
        _measurement("selection", 50, device, ("numpy",)),
        _measurement("ttft", 60, device, ("numpy", "transformers")),
        _measurement("replay", 25, device, ("transformers",)),
        _measurement("estimates", 20, device, tools=("nvcc",)),
        _tests(50, device),
        # These get only the time that is left, or a call of their own: --steps racecheck.
        _ncu(device),
        *(_sanitizer(tool, device) for tool in _SANITIZERS),
    ]


def _measurement(
    name: str,
    seconds: float,
    device: str,
    modules: tuple[str, ...] = (),
    tools: tuple[str, ...] = (),
) -> Step:
    command = [sys.executable, "-m", "benchmarks.gpu", name]
    command += ["--output", "{output}", "--beside", "{beside}", "--device"]
    return Step(
        name,
        seconds,
        [*command, device],
        modules=modules,
        tools=tools,
        rehearsal=None if tools else [*command, "cpu", "--small"],
    )


def _tests(seconds: float, device: str) -> Step:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    command += ["--findings", "{output}"]
    # Without --strict-config, an older pytest accepts options that it does not know.
    command += ["-o", "addopts=--import-mode=importlib"]
    command += ["--continue-on-collection-errors"]
    rehearsed = [f"tests/{name}.py" for name in _REHEARSED_TESTS]
    device_options = [*_in_processes(_MOST_PROCESSES), "--device", device]
    return Step(
        "tests",
        seconds,
        [*command, *operator_tests(), *device_options],
        resumes=not installed("xdist"),  # which starts its own processes anew
        modules=("pytest", "numpy"),
        rehearsal=[*command, *rehearsed, "--mirrored"],
    )


def _in_processes(most: int) -> list[str]:
    """Options of pytest, if it has the plugin."""
    count = min(most, len(os.sched_getaffinity(0)))
    return ["-n", str(count), "--dist", "worksteal"] if installed("xdist") else []


def _ncu(device: str) -> Step:
    """Profile every kernel of a selection at B = 1 and at B = 1024."""
    command = ["ncu", "--csv", "--page", "details", "--log-file", "{output}"]
    for section in ("SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats"):
        command += ["--section", section]
    command += ["--clock-control", "none"]  # others may share the card
    command += ["--kernel-name-base", "demangled", "--kernel-name", "regex:hullft::"]
    command += [sys.executable, "-m", "benchmarks.gpu", "selection", "--only", "right"]
    command += ["--device", device, "--output", "{output}.tasks"]
    return Step("ncu", 0, command, read_ncu, resumes=False, tools=("ncu",))


def read_ncu(output: Path) -> dict[str, Any]:
    """The rows of its table."""
    lines = output.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith('"')]
    if len(rows) < 2:
        raise ValueError("no launch was profiled")
    return {"rows": rows}


def _sanitizer(tool: str, device: str) -> Step:
    """Check only our kernels, not calls of the CUDA API that torch tries and that may fail.

    torch's caching allocator would hide the ends of tensors, so it is off.
    """
    command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer"]
    command += ["--tool", tool, "--kernel-name", "kns=hullft"]
    command += ["--report-api-errors", "no", "--error-exitcode", "9"]
    command += ["--print-limit", "20"]
    slow = ["--task-seconds", "240"]
    return Step(
        tool,
        0,
        [*command, *_measurement("operators", 0, device).command, *slow],
        tools=("compute-sanitizer",),
    )
