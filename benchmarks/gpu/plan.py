"""The steps of the GPU check."""

import os
import sys

from benchmarks.gpu.readers import read_json, read_junit, read_ncu
from benchmarks.gpu.step import ROOT, Step, installed

BUDGET_SECONDS = 520
_TTFT_PACKAGES = ("numpy", "transformers")
_SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
_MOST_PROCESSES = 8  # for tests on one GPU
# Tests that do not use the CUDA kernels, or that request them themselves.
_OTHER_TESTS = (
    "test_benchmarks",
    "test_compile_gate",
    "test_cuda_build",
    "test_cuda_errors",
    "test_distribution",
    "test_examples",
    "test_fuzz_corpus",
    "test_gpu_check",
    "test_packaging",
    "test_quotient_proof",
    "test_readme",
)
# An operator that returns tensors, and two that write to lists of them; the rest is only collected.
_REHEARSED_TESTS = (
    "test_fw_select_indexed.py",
    "test_grad_accumulate.py",
    "test_replay_adam.py",
)


def operator_tests() -> list[str]:
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    return [
        str(path.relative_to(ROOT)) for path in tests if path.stem not in _OTHER_TESTS
    ]


def plan(device: str) -> list[Step]:
    """The steps in order; their budgets add up to ``BUDGET_SECONDS``."""
    build = Step(
        "build",
        150,
        [sys.executable, "-m", "benchmarks.gpu.build", "--device", device],
        modules=("scikit_build_core", "pybind11"),
        tools=("nvcc", "cmake", "ninja"),
    )
    return [
        build,
        _measurement("environment", 15, device),
        _measurement("operators", 15, device),
        _tests(65, device),
        _measurement("graphs", 15, device),
        _measurement("selection", 35, device, ("numpy",)),
        _measurement("replay", 30, device, _TTFT_PACKAGES),
        _measurement("ttft", 120, device, _TTFT_PACKAGES),
        _launches(20, device),
        # Last, because they slow their program down many times: they get all the remaining time.
        *(_sanitizer(tool, 13, device) for tool in _SANITIZERS),
    ]


def _measurement(
    name: str, seconds: float, device: str, modules: tuple[str, ...] = ()
) -> Step:
    command = [sys.executable, "-m", "benchmarks.gpu", name]
    command += ["--output", "{output}", "--beside", "{beside}", "--device"]
    return Step(
        name,
        seconds,
        [*command, device],
        read_json,
        modules,
        rehearsal=[*command, "cpu", "--small"],
    )


def _tests(seconds: float, device: str) -> Step:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Without --strict-config, an older pytest accepts options that it does not know.
    command += ["-o", "addopts=--import-mode=importlib"]
    command += ["--continue-on-collection-errors", "--junitxml", "{output}"]
    command += operator_tests()
    return Step(
        "tests",
        seconds,
        [*command, *_in_processes(_MOST_PROCESSES), "--device", device],
        read_junit,
        ("pytest", "numpy"),
        # Collecting is most of it, and every process collects.
        rehearsal=[*command, "--mirrored", "-k", " or ".join(_REHEARSED_TESTS)],
    )


def _in_processes(most: int) -> list[str]:
    """Options of pytest, if it has the plugin."""
    count = min(most, len(os.sched_getaffinity(0)))
    return ["-n", str(count), "--dist", "worksteal"] if installed("xdist") else []


def _launches(seconds: float, device: str) -> Step:
    """Profile one launch each of the main kernels, with every metric that ncu has a section for."""
    command = ["ncu", "--set", "full", "--csv", "--page", "details"]
    command += ["--log-file", "{output}"]
    command += ["--clock-control", "none"]  # others may share the card
    command += ["--kernel-name", "regex:^(gram|fw_warp|adam)_kernel"]
    command += ["--launch-count", "3"]
    for part in _measurement("launches", seconds, device).command:
        command.append(part.replace("{output}", "{output}.json"))
    return Step("ncu", seconds, command, read_ncu, tools=("ncu",))


def _sanitizer(tool: str, seconds: float, device: str) -> Step:
    """Check only our kernels, not calls of the CUDA API that torch tries and that may fail.

    torch's caching allocator would hide the ends of tensors, so it is off.
    """
    command = ["compute-sanitizer", "--tool", tool, "--kernel-name", "kns=hullft"]
    command += ["--report-api-errors", "no", "--error-exitcode", "9"]
    command += ["--print-limit", "20"]
    return Step(
        f"compute-sanitizer {tool}",
        seconds,
        [*command, *_measurement("operators", seconds, device).command],
        read_json,
        tools=("compute-sanitizer",),
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
