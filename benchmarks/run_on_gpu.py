"""Builds for the GPU that torch sees, then runs tests and benchmarks, each file in a process.

    python -m benchmarks.run_on_gpu OUTPUT [FILE ...] [--seconds 450] [--no-build]

writes junit.xml, benchmarks.json, page.md and log.txt to the folder OUTPUT, anew after each file.
Without files it runs what shows most about a GPU, and the files of tests/ side by side. pytest
takes further options from PYTEST_ADDOPTS.

The exit status is 1 if a result is wrong, a test does not end, a process does not end as pytest
does, or a package is missing. A slow benchmark fails nothing. Tests that would start after
``--seconds`` are skipped.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from xml.etree.ElementTree import (
    Element,
    ElementTree,
    ParseError,
    SubElement,
    parse,
)

import torch

from benchmarks.compare import comparisons_of
from benchmarks.report import page, tests_page

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = (
    "benchmarks/gpu/test_operators.py",
    "benchmarks/gpu/test_training.py",
    "benchmarks/gpu/test_estimates.py",
    "tests/ops/test_fw_*.py",
    "tests/ops/test_simplex_*.py",
    "tests/ops/test_lstsq_*.py",
    "tests/ops/test_nnls.py",
    "tests/ops/test_selection_*.py",
    "tests/ops/test_sift_*.py",
    "tests/ops/test_knn_*.py",
    "tests/ops/test_integerize.py",
    "tests/ops/test_residual.py",
    "tests/ops/test_adam_*.py",
    "tests/ops/test_replay_*.py",
    "tests/ops/test_grad*.py",
    "tests/ops/test_registration.py",
    "benchmarks/gpu/bench_*.py",
    "benchmarks/bench_*.py",
)
# Of these: a peer, and files for which there is no time.
LEFT_OUT = (
    "test_sift_peer.py",
    "bench_replay.py",
    "bench_selection.py",
    "bench_sift.py",
    "bench_simplex.py",
    "bench_ttft.py",
)
# Of pytest: all passed, some failed, none was collected because the file skips itself.
STATUSES = (0, 1, 5)
# The exit status is 1, and the reason is printed, if the kernels cannot run.
CAN_RUN = """
import sys
from hullft_ops import _C
sys.exit(_C.cuda_unusable(0) or 0)
"""
# A test that takes longer ends its process.
TEST_SECONDS = 120
TESTS_AT_ONCE = 8


def build_command() -> list[str]:
    """Build for the visible card alone, which takes a third of the time."""
    major, minor = torch.cuda.get_device_capability()
    architecture = f"cmake.define.HULLFT_CUDA_ARCHITECTURES={major}{minor}-real"
    pip = [sys.executable, "-m", "pip", "install", "-v", "--force-reinstall", "."]
    pip += ["--no-build-isolation", "--no-deps", "--no-index"]
    pip += ["-C", "build-dir=build/gpu", "-C", "cmake.define.HULLFT_CUDA=ON"]
    # For the reports of compute-sanitizer; the kernels stay as they are.
    pip += ["-C", "cmake.define.CMAKE_CUDA_FLAGS=-lineinfo"]
    return [*pip, "-C", architecture]


def pytest_command(file: str, folder: Path, device: str, seconds: float) -> list[str]:
    limit = f"{seconds + TEST_SECONDS:.0f}"
    pytest = ["timeout", "--signal=ABRT", "--kill-after=10", limit, sys.executable]
    pytest += ["-m", "pytest", file, "-v", "-rA", "--device", device]
    pytest += ["--seconds", f"{seconds:.0f}"]
    pytest += ["--timeout", str(TEST_SECONDS), "--timeout-method", "thread"]
    pytest += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    # An older pytest does not know all that pyproject.toml sets.
    pytest += ["-o", "addopts=--import-mode=importlib"]
    pytest += ["-o", f"junit_suite_name={file}", "--junitxml", f"{folder}/junit.xml"]
    return [*pytest, "--benchmark-json", f"{folder}/benchmarks.json"]


def run(name: str, folder: Path, command: list[str]) -> list[Element]:
    """What a process finds, as suites of JUnit's XML; its output goes to a log in a new folder."""
    folder.mkdir()
    path = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/local/cuda/bin"]
    environment = os.environ | {"PATH": os.pathsep.join(path)}
    environment["PIP_BREAK_SYSTEM_PACKAGES"] = "1"  # it replaces none of the system's
    with (folder / "log.txt").open("wb") as log:
        log.write(f"== {' '.join(command)}\n".encode())
        log.flush()
        status = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    junit = folder / "junit.xml"
    suites: list[Element] = []
    # A process that was ended may leave half a file.
    with suppress(OSError, ParseError):
        suites = list(parse(junit).getroot())
    for suite in suites:
        for outcome in suite.iter("skipped"):
            if "could not import" in (outcome.text or ""):
                outcome.tag = "error"
    if status not in STATUSES or (status and not suites):
        message = f"the process ended with status {status}: see log.txt"
        suites.append(suite_of_process(name, "error", message))
    return suites or [suite_of_process(name)]


def suite_of_process(name: str, outcome: str = "", message: str = "") -> Element:
    suite = Element("testsuite", name=name)
    case = SubElement(suite, "testcase", classname=name, name="process")
    if outcome:
        SubElement(case, outcome, message=message)
    return suite


def run_file(file: str, parts: Path, device: str, end: float) -> list[Element]:
    left = end - monotonic()
    if left <= 0:
        return [suite_of_process(file, "skipped", "no time was left")]
    folder = parts / file.replace("/", ".")
    return run(file, folder, pytest_command(file, folder, device, left))


def write(output: Path, parts: Path, suites: Element) -> None:
    """Put what the processes have left so far into the four files."""
    ElementTree(suites).write(output / "junit.xml", encoding="utf-8")
    logs = sorted(parts.glob("*/log.txt"))
    (output / "log.txt").write_bytes(b"".join(log.read_bytes() for log in logs))
    runs = []
    for path in sorted(parts.glob("*/*.json")):
        # pytest-benchmark leaves an empty file where it measures nothing.
        with suppress(json.JSONDecodeError):
            runs.append(json.loads(path.read_text("utf-8")))
    pages = [tests_page(suites)]
    if any(comparisons_of(run) for run in runs):
        measured = runs[-1]
        measured["benchmarks"] = [one for run in runs for one in run["benchmarks"]]
        (output / "benchmarks.json").write_text(json.dumps(measured, indent=1), "utf-8")
        pages.append(page(measured))
    (output / "page.md").write_text("\n\n".join(pages) + "\n", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_on_gpu")
    parser.add_argument("output", type=Path)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--device", default="cuda", help="cpu only shows that they run")
    options = parser.parse_intermixed_args()
    end = monotonic() + options.seconds
    # A dump of a process that CUDA has ended would have the size of the card's memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options.output.mkdir(parents=True, exist_ok=True)
    paths = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
    paths = [path for path in paths if path.name not in LEFT_OUT]
    files = options.files or [str(path.relative_to(ROOT)) for path in paths]
    suites = Element("testsuites")

    def has_failed() -> bool:
        return bool({outcome.tag for outcome in suites.iter()} & {"failure", "error"})

    with TemporaryDirectory() as folder:
        parts = Path(folder)
        if not options.no_build:
            if find_spec("pip") is None:
                subprocess.run([sys.executable, "-m", "ensurepip"], check=True)
            suites.extend(run("build", parts / "build", build_command()))
        if options.device != "cpu" and not has_failed():
            can_run = [sys.executable, "-c", CAN_RUN]
            suites.extend(run("kernels", parts / "kernels", can_run))
        write(options.output, parts, suites)
        if has_failed():
            log = (options.output / "log.txt").read_text("utf-8", errors="replace")
            print("\n".join(log.splitlines()[-60:]))
            return 1
        run_one = partial(run_file, parts=parts, device=options.device, end=end)
        for place, group in groupby(files, key=lambda file: Path(file).parts[0]):
            with ThreadPoolExecutor(TESTS_AT_ONCE if place == "tests" else 1) as pool:
                for of_file in pool.map(run_one, group):
                    suites.extend(of_file)
                    write(options.output, parts, suites)
    print((options.output / "page.md").read_text("utf-8"))
    return int(has_failed())


if __name__ == "__main__":
    sys.exit(main())
