"""Builds, tests and times the CUDA operators on one GPU: ``python benchmarks/gpu_check.py``.

The build, only for that card, replaces an installed ``hullft_ops``. The whole takes under 9 minutes
and downloads nothing. It writes a JSON file and a table after each step, and a log as the steps
run. If a step lacks a package or tool, the record names what it needs. ``--dry-run`` runs the same
steps on the CPU, except the build, ncu and the sanitizer, whose commands it prints. The sanitizer
runs the step ``operators``. The step ``passes`` leaves a profiler's trace beside the results.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1
BUDGET_SECONDS = 520
_TTFT_PACKAGES = ("numpy", "pyarrow", "rich", "transformers")
_TOOLS_IN_MODULES = ("cmake", "ninja")  # scikit-build-core finds them there too
_SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
_MOST_PROCESSES = 8  # for tests on one GPU
_REHEARSAL_SECONDS = (
    300  # per step: the time on a shared CPU says nothing about a GPU's
)
# Tests that do not use the CUDA kernels, or that request them themselves.
_OTHER_TESTS = (
    "test_benchmarks", "test_compile_gate", "test_cuda_build", "test_cuda_errors",
    "test_distribution", "test_examples", "test_fuzz_corpus", "test_gpu_check", "test_packaging",
    "test_quotient_proof", "test_readme",
)  # fmt: skip
# An operator that returns tensors, and two that write to lists of them; the rest is only collected.
_REHEARSED_TESTS = (
    "test_fw_select_indexed.py",
    "test_grad_accumulate.py",
    "test_replay_adam.py",
)
PASSED, FAILED, NOT_RUN, REHEARSED = (
    "passed",
    "failed",
    "not run",
    "rehearsed on the CPU",
)


@dataclass(frozen=True)
class Step:
    """One command and its share of the time.

    Attributes:
        seconds: its budget. It also gets the time that earlier steps left, and is then stopped.
        command: the command; ``{output}`` is a file that it may write for ``read``, and other files
            that stay begin with ``{beside}``.
        read: turns that file into the step's results.
        modules, tools: must be installed, or the step does not run.
        rehearsal: runs instead in a dry run; None only prints the command.
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
        modules = [name for name in self.modules if not _installed(name)]
        return modules + [tool for tool in self.tools if not _available(tool)]


def _available(tool: str) -> bool:
    in_module = tool in _TOOLS_IN_MODULES and _installed(tool)
    return in_module or shutil.which(tool, path=_path()) is not None


def _installed(module: str) -> bool:
    """A mere folder of that name, like our ``cmake``, does not count: it has no origin."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def _path() -> str:
    """Where to look for programs: first beside Python, where pip puts them, last in CUDA."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    on_path = os.environ.get("PATH") or os.defpath
    return os.pathsep.join([str(Path(sys.executable).parent), on_path, f"{cuda}/bin"])


def read_nothing(output: Path) -> dict[str, Any]:
    return {}


def read_json(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def read_junit(output: Path) -> dict[str, Any]:
    """Counts, the reasons of skipped tests, and the names of failed ones."""
    suite = ElementTree.parse(output).getroot()[0]
    counts = {
        name: int(suite.get(name, 0))
        for name in ("tests", "failures", "errors", "skipped")
    }
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


def read_ncu(output: Path) -> dict[str, Any]:
    """Each kernel's metrics, with their units, from the page of details."""
    lines = output.read_text(encoding="utf-8").splitlines()
    start = next(
        (i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines)
    )
    metrics: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines[start:]):
        if row["Metric Name"]:
            of_kernel = metrics.setdefault(row["Kernel Name"], {})
            of_kernel[row["Metric Name"]] = (
                f"{row['Metric Value']} {row['Metric Unit']}".strip()
            )
    if not metrics:
        raise ValueError("no launch was profiled")
    return {"metrics": metrics}


def operator_tests() -> list[str]:
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    return [
        str(path.relative_to(ROOT)) for path in tests if path.stem not in _OTHER_TESTS
    ]


def _measurement(
    name: str, seconds: float, device: str, modules: tuple[str, ...] = ()
) -> Step:
    def command(on: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.gpu", name, "--device", on,
                "--output", "{output}", "--beside", "{beside}", *more]  # fmt: skip

    return Step(name, seconds, command(device), read_json, modules,
                rehearsal=command("cpu", "--small"))  # fmt: skip


def _sanitizer(tool: str, seconds: float, device: str) -> Step:
    """Check only our kernels, not calls of the CUDA API that torch tries and that may fail.

    torch's caching allocator would hide the ends of tensors, so it is off.
    """
    program = _measurement("operators", seconds, device)
    command = ["compute-sanitizer", "--tool", tool, "--kernel-name", "kns=hullft"]
    command += [
        "--report-api-errors",
        "no",
        "--error-exitcode",
        "9",
        "--print-limit",
        "20",
    ]
    command += program.command
    return Step(
        f"compute-sanitizer {tool}", seconds, command, read_json,
        tools=("compute-sanitizer",),
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )  # fmt: skip


def _launches(seconds: float, device: str) -> Step:
    """Profile one launch each of the main kernels, with every metric that ncu has a section for."""
    program = _measurement("launches", seconds, device).command
    command = [
        "ncu",
        "--set",
        "full",
        "--csv",
        "--page",
        "details",
        "--log-file",
        "{output}",
    ]
    command += ["--clock-control", "none"]  # others may share the card
    command += [
        "--kernel-name",
        "regex:^(gram|fw_warp|adam)_kernel",
        "--launch-count",
        "3",
    ]
    command += [part.replace("{output}", "{output}.json") for part in program]
    return Step("ncu", seconds, command, read_ncu, tools=("ncu",))


def _in_processes(most: int) -> list[str]:
    """Options of pytest, if it has the plugin."""
    count = min(most, len(os.sched_getaffinity(0)))
    return ["-n", str(count), "--dist", "worksteal"] if _installed("xdist") else []


def _tests(seconds: float, device: str) -> Step:
    # Without --strict-config, an older pytest accepts options that it does not know.
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib",
               "--junitxml", "{output}", "-p", "no:cacheprovider",
               "--continue-on-collection-errors"]  # fmt: skip
    command += operator_tests()
    return Step(
        "tests", seconds, [*command, *_in_processes(_MOST_PROCESSES), "--device", device],
        read_junit, ("pytest", "numpy"),
        # Collecting is most of it, and every process collects.
        rehearsal=[*command, *_in_processes(1), "--mirrored", "-k", " or ".join(_REHEARSED_TESTS)],
    )  # fmt: skip


def plan(device: str) -> list[Step]:
    """The steps in order; their budgets add up to ``BUDGET_SECONDS``."""
    build = [sys.executable, "-m", "benchmarks.gpu.build", "--device", device]
    return [
        Step("build", 150, build, read_nothing,
             ("scikit_build_core", "pybind11"), ("nvcc", "cmake", "ninja")),
        _measurement("environment", 15, device),
        _measurement("operators", 15, device),
        _tests(65, device),
        _measurement("graphs", 15, device),
        _measurement("selection", 35, device, ("numpy", "pytest")),
        _measurement("replay", 30, device, _TTFT_PACKAGES),
        _measurement("passes", 45, device, (*_TTFT_PACKAGES, "pytest")),
        _measurement("ttft", 75, device, (*_TTFT_PACKAGES, "pytest")),
        _launches(20, device),
        # Last, because they slow their program down many times: they get all the remaining time.
        *(_sanitizer(tool, 13, device) for tool in _SANITIZERS),
    ]  # fmt: skip


def run_step(
    step: Step, seconds: float, log: IO[bytes], *, dry_run: bool
) -> dict[str, Any]:
    """Run a step and return its record for the file. Its output goes to the log as it comes."""
    heading = f"== {step.name}: {' '.join(step.command)}"
    print(heading, flush=True)
    log.write(f"{heading}\n".encode())
    log.flush()
    record: dict[str, Any] = {
        "name": step.name,
        "command": step.command,
        "seconds": 0.0,
    }
    command, missing = step.rehearsal if dry_run else step.command, step.missing()
    if command is None:
        needs = f"; it needs {', '.join(missing)}" if missing else ""
        return {
            **record,
            "status": NOT_RUN,
            "why": f"needs a GPU, a dry run prints it{needs}",
        }
    if not dry_run and missing:
        return {**record, "status": NOT_RUN, "why": f"needs {', '.join(missing)}"}
    if seconds <= 0:
        return {**record, "status": NOT_RUN, "why": "the time was used up"}
    start = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        status, why = _execute(step, command, output, seconds, log)
        record["seconds"] = round(monotonic() - start, 2)
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


def _execute(
    step: Step, command: list[str], output: Path, seconds: float, log: IO[bytes]
) -> tuple[str, str]:
    beside = str(Path(str(log.name)).resolve()).removesuffix(".log")
    try:
        process = subprocess.Popen(
            [part.format(output=output, beside=beside) for part in command],
            cwd=ROOT,
            env=os.environ | {"PATH": _path()} | step.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return FAILED, str(error)
    with process:
        try:
            process.wait(seconds)
        except BaseException as error:
            # Kill its children too, or they would run on beside the next step.
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return FAILED, f"no end after {seconds:.0f} s"
    if process.returncode:
        return FAILED, f"exit status {process.returncode}"
    return PASSED, ""


def check(device: str, log: IO[bytes], *, dry_run: bool) -> Iterator[dict[str, Any]]:
    """Run every step in turn. Without a build the other steps do not run.

    The next step gets the time that a step leaves, because no budget here has met a GPU yet.
    """
    end = monotonic()
    built: bool | None = None
    for step in plan(device):
        end += step.seconds
        if not dry_run and built is False:
            why = "there is no build"
            record = {"name": step.name, "command": step.command, "seconds": 0.0}
            record |= {"status": NOT_RUN, "why": why}
        else:
            seconds = _REHEARSAL_SECONDS if dry_run else end - monotonic()
            record = run_step(step, seconds, log, dry_run=dry_run)
        if built is None:
            built = record["status"] == PASSED
        yield record


def table(summary: dict[str, Any]) -> str:
    """The file's contents as a Markdown page."""
    lines = [
        f"# GPU check: {summary['card']}",
        "",
        f"Commit {summary['commit']}, {summary['date']}.",
    ]
    lines += ["", "| step | result | seconds | |", "|---|---|---:|---|"]
    for step in summary["steps"]:
        lines.append(
            f"| {step['name']} | {step['status']} | {step['seconds']} | {step['why']} |"
        )
    found = [step.get("results", {}) for step in summary["steps"]]
    lines += [
        "",
        "| case | seconds | against | times the sweep | |",
        "|---|---:|---|---:|---|",
    ]
    for comparison in (c for results in found for c in results.get("comparisons", [])):
        lines.append(_comparison_row(comparison))
    lines += ["", "| goal | wanted | measured | met |", "|---|---:|---:|---|"]
    for goal in (g for results in found for g in results.get("goals", [])):
        met = "yes" if goal["met"] else "no"
        wanted, measured = _shown(goal["wanted"]), _shown(goal["measured"])
        lines.append(f"| {goal['text']} | {wanted} | {measured} | {met} |")
    return "\n".join(lines) + "\n"


def _comparison_row(comparison: dict[str, Any]) -> str:
    seconds = comparison["ours"]["seconds"]
    peers = [f"{peer} {ratio:.3g}x" for peer, ratio in comparison["ratios"].items()]
    sweep = comparison["times_roofline"]
    facts = [f"{name} {_shown(value)}" for name, value in comparison["facts"].items()]
    times = "" if sweep is None else f"{sweep:.3g}"
    name = f"{comparison['group']} {comparison['name']}"
    return f"| {name} | {seconds:.3g} | {', '.join(peers)} | {times} | {', '.join(facts)} |"


def _shown(value: float | None) -> str:
    """The number as text. A step writes None for NaN and infinity."""
    return "not finite" if value is None else f"{value:.3g}"


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
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _write(path: Path, text: str) -> None:
    """Write the file whole or not at all. Does not need this package, which may not be built."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """0 if every step passed, 1 if one failed, 3 if none failed and some did not run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda:0", help="cuda:0 (the default) or another"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, without build"
    )
    parser.add_argument("--commit", help="of the sources, where git cannot tell")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks/results/gpu_check.json",
        help="a JSON file, whose folder is made; .md, .log and .trace.json.gz go beside it",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    output: Path = options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    commit = options.commit or _commit()
    records: list[dict[str, Any]] = []

    def write() -> None:
        summary = summarise(records, options.device, commit, options.dry_run)
        _write(output, json.dumps(summary, indent=1, allow_nan=False) + "\n")
        _write(output.with_suffix(".md"), table(summary))

    write()
    with output.with_suffix(".log").open("wb") as log:
        for record in check(options.device, log, dry_run=options.dry_run):
            records.append(record)
            # If somebody stops this, the file has the steps so far.
            write()
            print(f"   {record['status']} {record['why']}", flush=True)
    print(f"wrote {output}")
    statuses = {record["status"] for record in records}
    if FAILED in statuses:
        return 1
    return 0 if statuses == {PASSED} else 3


if __name__ == "__main__":
    sys.exit(main())
