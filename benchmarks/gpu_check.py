"""Builds, tests and times the CUDA operators on one GPU: ``python benchmarks/gpu_check.py``.

The build, for that card alone, takes the place of an installed ``hullft_ops``. The whole takes
under 9 minutes and downloads nothing. It writes a JSON file and a table after each step, and a log
as the steps run. A step whose package or tool is missing is recorded as not run, with what it
needs. ``--dry-run`` goes through the same steps on the CPU, but for the build and the sanitizer,
whose commands it prints: what the sanitizer runs is the step ``operators``.
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
_MOST_PROCESSES = 8  # of tests on one GPU
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
# An operator that returns tensors, and two that write to lists of them; the rest is collected.
_REHEARSED_TESTS = ("test_fw_select_indexed.py", "test_grad_accumulate.py", "test_replay_adam.py")
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
        modules = [name for name in self.modules if not _installed(name)]
        return modules + [tool for tool in self.tools if not _available(tool)]


def _available(tool: str) -> bool:
    in_module = tool in _TOOLS_IN_MODULES and _installed(tool)
    return in_module or shutil.which(tool, path=_path()) is not None


def _installed(module: str) -> bool:
    """A folder of that name, as ``cmake`` here, is none: it has no origin."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def _path() -> str:
    """Of programs: first those beside Python, where pip puts them; last those of CUDA."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    on_path = os.environ.get("PATH") or os.defpath
    return os.pathsep.join([str(Path(sys.executable).parent), on_path, f"{cuda}/bin"])


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
               "--junitxml", "{output}", "-p", "no:cacheprovider",
               "--continue-on-collection-errors"]  # fmt: skip
    if _installed("xdist"):
        processes = min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))
        command += ["-n", str(processes), "--dist", "worksteal"]
    command += operator_tests()
    return Step(
        "tests", seconds, [*command, "--device", device], read_junit, ("pytest", "numpy"),
        rehearsal=[*command, "--mirrored", "-k", " or ".join(_REHEARSED_TESTS)],
    )  # fmt: skip


def plan(device: str) -> list[Step]:
    """The steps in order; their budgets add up to ``BUDGET_SECONDS``."""
    build = [sys.executable, "-m", "benchmarks.gpu.build", "--device", device]
    return [
        Step("build", 150, build, read_nothing,
             ("scikit_build_core", "pybind11"), ("nvcc", "cmake", "ninja")),
        _measurement("environment", 20, device),
        _measurement("operators", 20, device),
        _tests(70, device),
        _measurement("graphs", 20, device),
        _measurement("selection", 40, device, ("numpy", "pytest")),
        _measurement("replay", 40, device, _TTFT_PACKAGES),
        _measurement("ttft", 120, device, (*_TTFT_PACKAGES, "pytest")),
        # Last, for they take many times as long as what they run: all time that is left is theirs.
        *(_sanitizer(tool, 13, device) for tool in ("memcheck", "racecheck", "initcheck")),
    ]  # fmt: skip


def run_step(step: Step, seconds: float, log: IO[bytes], *, dry_run: bool) -> dict[str, Any]:
    """What became of a step, for the file; what it says goes to the log as it comes."""
    heading = f"== {step.name}: {' '.join(step.command)}"
    print(heading, flush=True)
    log.write(f"{heading}\n".encode())
    log.flush()
    record: dict[str, Any] = {"name": step.name, "command": step.command, "seconds": 0.0}
    command, missing = step.rehearsal if dry_run else step.command, step.missing()
    if command is None:
        needs = f"; it needs {', '.join(missing)}" if missing else ""
        return {**record, "status": NOT_RUN, "why": f"a dry run only prints this command{needs}"}
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
    try:
        process = subprocess.Popen(
            [part.format(output=output) for part in command],
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
            # With what it has started, which would run on beside the next step.
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return FAILED, f"no end after {seconds:.0f} s"
    if process.returncode:
        return FAILED, f"exit status {process.returncode}"
    return PASSED, ""


def check(device: str, log: IO[bytes], *, dry_run: bool) -> Iterator[dict[str, Any]]:
    """Every step in turn; without a build there is nothing to try.

    What a step leaves of its time is the next one's: no budget here has met a GPU yet.
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
        lines.append(f"| {step['name']} | {step['status']} | {step['seconds']} | {step['why']} |")
    found = [step.get("results", {}) for step in summary["steps"]]
    lines += ["", "| case | seconds | against | times the sweep | |", "|---|---:|---|---:|---|"]
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
    """None is what a step writes for NaN and infinity."""
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
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks/results/gpu_check.json",
        help="a JSON file, whose folder is made; .md and .log go beside it",
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
            # Whoever stops this has the steps so far.
            write()
            print(f"   {record['status']} {record['why']}", flush=True)
    print(f"wrote {output}")
    statuses = {record["status"] for record in records}
    if FAILED in statuses:
        return 1
    return 0 if statuses == {PASSED} else 3


if __name__ == "__main__":
    sys.exit(main())
