"""A step of the GPU check: one command, how long it may take, and what became of it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import IO, Any
from xml.etree.ElementTree import ParseError

ROOT = Path(__file__).resolve().parents[2]
_TOOLS_IN_MODULES = ("cmake", "ninja")  # scikit-build-core finds them there too
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
REHEARSED = "rehearsed on the CPU"


@dataclass(frozen=True)
class Step:
    """One command and its share of the time.

    Attributes:
        seconds: its budget. It also gets the time that earlier steps left, and is then stopped.
        command: the command; ``{output}`` is a file that it may write for ``read``, and other files
            that stay begin with ``{beside}``.
        read: turns that file into the step's results; None if it writes none.
        modules, tools: must be installed, or the step does not run.
        rehearsal: runs instead in a dry run; None only prints the command.
    """

    name: str
    seconds: float
    command: list[str]
    read: Callable[[Path], dict[str, Any]] | None = None
    modules: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    rehearsal: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        modules = [name for name in self.modules if not installed(name)]
        return modules + [tool for tool in self.tools if not _available(tool)]


def run_step(
    step: Step, seconds: float, log: IO[bytes], *, dry_run: bool
) -> dict[str, Any]:
    """Run a step and return its record for the file. Its output goes to the log as it comes."""
    heading = f"== {step.name}: {' '.join(step.command)}"
    print(heading, flush=True)
    log.write(f"{heading}\n".encode())
    log.flush()
    command, missing = step.command, ", ".join(step.missing())
    if dry_run:
        if step.rehearsal is None:
            needs = f"; it needs {missing}" if missing else ""
            why = f"needs a GPU, a dry run prints it{needs}"
            return record_of(step, NOT_RUN, why)
        command = step.rehearsal
    elif missing:
        return record_of(step, NOT_RUN, f"needs {missing}")
    if seconds <= 0:
        return record_of(step, NOT_RUN, "the time was used up")
    start = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        why = _execute(step, command, output, seconds, log)
        results, unusable = _results(step, output)
        why = why or unusable
    status = FAILED if why else REHEARSED if dry_run else PASSED
    record = record_of(step, status, why)
    record["seconds"] = round(monotonic() - start, 2)
    return record | ({} if results is None else {"results": results})


def record_of(step: Step, status: str, why: str) -> dict[str, Any]:
    return {
        "name": step.name,
        "command": step.command,
        "seconds": 0.0,
        "status": status,
        "why": why,
    }


def _execute(
    step: Step, command: list[str], output: Path, seconds: float, log: IO[bytes]
) -> str:
    """Why it failed; empty if it did not."""
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
        return str(error)
    with process:
        try:
            process.wait(seconds)
        except BaseException as error:
            # Kill its children too, or they would run on beside the next step.
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"no end after {seconds:.0f} s"
    return f"exit status {process.returncode}" if process.returncode else ""


def _results(step: Step, output: Path) -> tuple[dict[str, Any] | None, str]:
    """What a step has found so far, and why that cannot be used."""
    if step.read is None:
        return None, ""
    if not output.exists():
        return None, "it wrote no results"
    try:
        return step.read(output), ""
    except (ValueError, IndexError, ParseError) as error:
        return None, f"its results cannot be used: {error}"


def _available(tool: str) -> bool:
    in_module = tool in _TOOLS_IN_MODULES and installed(tool)
    return in_module or shutil.which(tool, path=_path()) is not None


def installed(module: str) -> bool:
    """A mere folder of that name, like our ``cmake``, does not count: it has no origin."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def _path() -> str:
    """Where to look for programs: first beside Python, where pip puts them, last in CUDA."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    on_path = os.environ.get("PATH") or os.defpath
    return os.pathsep.join([str(Path(sys.executable).parent), on_path, f"{cuda}/bin"])
