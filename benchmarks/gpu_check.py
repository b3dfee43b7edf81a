"""Builds, tests and times the CUDA operators on one GPU: ``python benchmarks/gpu_check.py``.

The build, only for that card, replaces an installed ``hullft_ops``. The whole takes under 9 minutes
and downloads nothing. It writes a JSON file and a table after each step, and a log as the steps
run. If a step lacks a package or tool, the record names what it needs. ``--dry-run`` runs the same
steps on the CPU, except the build, ncu and the sanitizer, whose commands it prints. The sanitizer
runs the step ``operators``. The step ``ttft`` leaves a profiler's trace beside the results.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import IO, Any

# Python looks for modules in this file's folder alone.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu.plan import plan
from benchmarks.gpu.step import (
    FAILED,
    NOT_RUN,
    PASSED,
    ROOT,
    record_of,
    run_step,
)

# Per step: the time on a shared CPU says nothing about a GPU's.
_REHEARSAL_SECONDS = 300


def check(device: str, log: IO[bytes], *, dry_run: bool) -> Iterator[dict[str, Any]]:
    """Run every step in turn. Without a build the other steps do not run.

    The next step gets the time that a step leaves, because no budget here has met a GPU yet.
    """
    end = monotonic()
    built = True
    for step in plan(device):
        end += step.seconds
        if built:
            seconds = _REHEARSAL_SECONDS if dry_run else end - monotonic()
            record = run_step(step, seconds, log, dry_run=dry_run)
        else:
            record = record_of(step, NOT_RUN, "there is no build")
        if step.name == "build" and not dry_run:
            built = record["status"] == PASSED
        yield record


def table(summary: dict[str, Any]) -> str:
    """The file's contents as a Markdown page."""
    lines = [f"# GPU check: {summary['card']}", ""]
    lines += [f"Commit {summary['commit']}, {summary['date']}.", ""]
    lines += ["| step | result | seconds | |", "|---|---|---:|---|"]
    for step in summary["steps"]:
        cells = (step["name"], step["status"], f"{step['seconds']}", step["why"])
        lines.append(f"| {' | '.join(cells)} |")
    results = [step.get("results", {}) for step in summary["steps"]]
    lines += ["", "| case | seconds | against | |", "|---|---:|---|---|"]
    for measured in results:
        lines += [_comparison_row(c) for c in measured.get("comparisons", [])]
    lines += ["", "| goal | limit | measured | met |", "|---|---:|---:|---|"]
    for measured in results:
        for goal in measured.get("goals", []):
            numbers = f"{_shown(goal['limit'])} | {_shown(goal['measured'])}"
            met = "yes" if goal["met"] else "no"
            lines.append(f"| {goal['text']} | {numbers} | {met} |")
    return "\n".join(lines) + "\n"


def _comparison_row(comparison: dict[str, Any]) -> str:
    name = f"{comparison['group']} {comparison['case']}"
    ratios = [f"{peer} {_shown(r)}x" for peer, r in comparison["ratios"].items()]
    facts = [f"{name} {_shown(value)}" for name, value in comparison["facts"].items()]
    seconds = _shown(comparison["seconds"])
    return f"| {name} | {seconds} | {', '.join(ratios)} | {', '.join(facts)} |"


def _shown(value: float | None) -> str:
    """The number as text. A step writes None for NaN and infinity."""
    return "not finite" if value is None else f"{value:.3g}"


def summarise(
    records: list[dict[str, Any]], device: str, commit: str, dry_run: bool
) -> dict[str, Any]:
    environment: dict[str, Any] = {}
    for record in records:
        if record["name"] == "environment":
            environment = record.get("results", {})
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
        "--output",
        type=Path,
        default=ROOT / "benchmarks/results/gpu_check.json",
        help="a JSON file, whose folder is made; .md, .log and .trace.json.gz go beside it",
    )
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
