"""A step of the GPU check: one command, how long it may take, and what became of it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import IO, Any

from benchmarks.gpu.findings import close, read_findings, started

ROOT = Path(__file__).resolve().parents[2]
PASSED, FAILED, NOT_RUN, RUNNING = "passed", "failed", "not run", "running"
REHEARSED = "rehearsed on the CPU"

# The exit status of a process that an error of CUDA has left unusable.
STICKY = 70
# Between the signal that makes Python write its stacks and the one that nothing survives.
_LAST_WORDS_SECONDS = 5
_POLL_SECONDS = 1
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


@dataclass(frozen=True)
class Step:
    """One command and its share of the time.

    Attributes:
        seconds: its budget; 0 if it gets only what the others leave.
        command: the command. ``{output}`` is a file of findings, or one that ``read`` understands,
            and other files that stay begin with ``{beside}``.
        read: turns that file into the step's results; None if it writes none.
        resumes: if its process dies in a task, another goes on behind that task.
        modules, tools: must be installed, or the step does not run.
        rehearsal: runs instead in a dry run; None only prints the command.
    """

    name: str
    seconds: float
    command: list[str]
    read: Callable[[Path], dict[str, Any]] | None = read_findings
    resumes: bool = True
    modules: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    rehearsal: list[str] | None = None

    def missing(self) -> list[str]:
        modules = [name for name in self.modules if not installed(name)]
        path = _path()
        return modules + [t for t in self.tools if shutil.which(t, path=path) is None]


def run_step(
    step: Step, seconds: float, beside: Path, *, dry_run: bool
) -> Iterator[dict[str, Any]]:
    """Run a step. Yields its record for the file, again and again while it finds more.

    What it prints goes to ``beside.log`` as it comes, what it finds to ``beside.NAME.jsonl``.
    """
    command, missing = step.command, ", ".join(step.missing())
    if dry_run:
        if step.rehearsal is None:
            needs = f"; it needs {missing}" if missing else ""
            why = f"needs a GPU, a dry run prints it{needs}"
            yield record_of(step, NOT_RUN, why)
            return
        command = step.rehearsal
    elif missing:
        yield record_of(step, NOT_RUN, f"needs {missing}")
        return
    output = Path(f"{beside}.{step.name}.jsonl")
    output.unlink(missing_ok=True)
    command = [part.replace("{output}", str(output)) for part in command]
    command = [part.replace("{beside}", str(beside)) for part in command]
    start = monotonic()
    with Path(f"{beside}.log").open("ab") as log:
        for why in _processes(step, command, output, start + seconds, log):
            results, wrong = _results(step, output)
            record = record_of(step, RUNNING, "; ".join(filter(None, [wrong, why])))
            record |= {"seconds": round(monotonic() - start, 1), "results": results}
            yield record
    status = FAILED if record["why"] else REHEARSED if dry_run else PASSED
    yield record | {"status": status}


def record_of(step: Step, status: str, why: str) -> dict[str, Any]:
    return {
        "name": step.name,
        "command": step.command,
        "seconds": 0.0,
        "status": status,
        "why": why,
    }


def _processes(
    step: Step, command: list[str], output: Path, end: float, log: IO[bytes]
) -> Iterator[str]:
    """Run the command, anew as long as its processes die in one task after the other.

    Yields when there is more in the output. The last is why the last process failed, or empty.
    """
    while True:
        before = len(started(output))
        log.write(f"== {step.name}: {' '.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | _ENVIRONMENT | {"PATH": _path()},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        size = 0
        try:
            while process.poll() is None and (left := end - monotonic()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(_POLL_SECONDS, left))
                if output.exists() and output.stat().st_size != size:
                    size = output.stat().st_size
                    yield ""
        finally:
            status = process.poll()
            if status is None:
                _kill(process)
        why = f"exit status {status}" if status else ""
        if status is None:
            why = "it was stopped at the end of its time"
        # Whatever else it exits for, as a sanitizer that has found something, is a failure.
        has_died = step.resumes and (close(output, why) or status == STICKY)
        if not has_died or len(started(output)) == before or monotonic() >= end:
            yield why
            return


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Its children too, or they would run on beside the next step."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_WORDS_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _results(step: Step, output: Path) -> tuple[dict[str, Any], str]:
    """What a step has found so far, and what is wrong with that."""
    if step.read is None:
        return {}, ""
    if not output.exists():
        return {}, "it wrote no results"
    try:
        results = step.read(output)
    except ValueError as error:
        return {}, f"its results cannot be used: {error}"
    wrong = len(results.get("failed", ()))
    return results, f"{wrong} of {results['tasks']} failed" if wrong else ""


def installed(module: str) -> bool:
    """A mere folder of that name, like our ``cmake``, does not count: it has no origin."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def _path() -> str:
    """Where to look for programs: first beside Python, where pip puts them, last in CUDA."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    on_path = os.environ.get("PATH") or os.defpath
    return os.pathsep.join([str(Path(sys.executable).parent), on_path, f"{cuda}/bin"])
