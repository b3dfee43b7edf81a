"""Builds, tests and times the CUDA operators on one GPU: ``python benchmarks/gpu_check.py``.

The build, only for that card, replaces an installed ``hullft_ops``. The whole takes under 9 minutes
and downloads nothing. A step fails if a task in it raises or gives a wrong result; a slow one fails
nothing. Tasks go on after an error, in a new process if need be. The results are in a JSON file
from second to second, a page of 40 lines is beside it, and a log has the output of the steps.

Steps that come too late need a call of their own, such as ``--steps racecheck``. ``--dry-run`` runs
the same steps on the CPU, except those that need a tool of CUDA, whose commands it prints.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

# Python looks for modules in this file's folder alone.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu.page import page
from benchmarks.gpu.plan import BUDGET_SECONDS, plan
from benchmarks.gpu.step import (
    FAILED,
    NOT_RUN,
    PASSED,
    ROOT,
    RUNNING,
    Step,
    record_of,
    run_step,
)

# Per step: the time on a shared CPU says nothing about a GPU's.
_REHEARSAL_SECONDS = 300
# With less, a step would only start.
_LEAST_SECONDS = 10


def check(
    steps: Sequence[Step], beside: Path, *, dry_run: bool
) -> Iterator[dict[str, Any]]:
    """Run every step in turn, and yield its record whenever it changes.

    Without a build the other steps do not run. A step gets its budget, and beyond it the time that
    the later ones do not need.
    """
    end = monotonic() + BUDGET_SECONDS
    later = sum(step.seconds for step in steps)
    has_build = True
    for step in steps:
        later -= step.seconds
        left = end - monotonic()
        seconds = min(left, max(step.seconds, left - later))
        if dry_run:
            seconds = _REHEARSAL_SECONDS
        print(f"== {step.name}: {' '.join(step.command)}", flush=True)
        if not has_build:
            yield record_of(step, NOT_RUN, "there is no build")
            continue
        if seconds < _LEAST_SECONDS:
            yield record_of(step, NOT_RUN, f"no time left: --steps {step.name}")
            continue
        for record in run_step(step, seconds, beside, dry_run=dry_run):
            yield record
        if step.name == "build" and not dry_run:
            has_build = record["status"] == PASSED


def summarise(
    records: list[dict[str, Any]], device: str, commit: str, dry_run: bool
) -> dict[str, Any]:
    environment: dict[str, Any] = {}
    for record in records:
        if record["name"] == "environment":
            facts = record.get("results", {}).get("facts", {})
            environment = facts.get("versions", {}).get("versions", {})
    cards = [card["name"] for card in environment.get("cuda_devices", [])]
    return {
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


def _options(arguments: list[str] | None, names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda:0", help="cuda:0 (the default) or another"
    )
    parser.add_argument(
        "--steps",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"only these: {', '.join(names)}",
    )
    parser.add_argument(
        "--no-build", action="store_true", help="with the package that is installed"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, without build"
    )
    parser.add_argument("--commit", help="of the sources, where git cannot tell")
    parser.add_argument(
        "--output",
        type=Path,
        help="a JSON file, whose folder is made; .md, .log and others go beside it. The default "
        "is in benchmarks/results/ and named for the steps",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 if every step passed, 1 if one failed, 3 if none failed and some did not run."""
    names = [step.name for step in plan("")]
    options = _options(arguments, names)
    # A stopped check stops its steps. Their stacks tell more than a core of a GPU's memory.
    signal.signal(signal.SIGTERM, lambda *arguments: sys.exit(1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stem = "-".join(["gpu_check", *(options.steps or ())])
    default = ROOT / "benchmarks/results" / f"{stem}.json"
    output: Path = (options.output or default).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    commit = options.commit or _commit()
    chosen = options.steps or names
    steps = [
        step
        for step in plan(options.device)
        if step.name in chosen and not (options.no_build and step.name == "build")
    ]
    records: dict[str, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    for record in check(steps, output.with_suffix(""), dry_run=options.dry_run):
        records[record["name"]] = record
        summary = summarise(
            [*records.values()], options.device, commit, options.dry_run
        )
        # If somebody stops this, the file has what was found so far.
        _write(output, json.dumps(summary, indent=1, allow_nan=False) + "\n")
        _write(output.with_suffix(".md"), page(summary))
        if record["status"] != RUNNING:
            print(f"   {record['status']} {record['why']}", flush=True)
    print(f"\n{page(summary)}\nwrote {output}")
    statuses = {record["status"] for record in records.values()}
    if FAILED in statuses:
        return 1
    return 0 if statuses == {PASSED} else 3


if __name__ == "__main__":
    sys.exit(main())
