"""Measures and writes the results: ``python -m benchmarks.run --grid quick``.

Each group runs in its own process, so the next group gets its memory back. Writes DEVICE.json,
DEVICE.md and DEVICE.png into the output folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.conftest import PACES, THREADS
from benchmarks.growth import write_growth
from benchmarks.report import write_page
from benchmarks.results import Results, comparison
from benchmarks.timing import Comparison
from hullft_ops.collect_env import collect_env

ROOT = Path(__file__).parents[1]
GROUPS = (
    "selection",
    "sift",
    "integerize",
    "replay",
    "accumulate",
    "experts",
    "ttft",
    "many",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu (the default), cuda or cuda:N"
    )
    parser.add_argument("--grid", choices=tuple(PACES), default="full")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument(
        "--output",
        type=Path,
        help="folder; of all groups together that of the published results",
    )
    options = parser.parse_args(arguments)
    output: Path | None = options.output
    if output is None:
        if set(options.groups) != set(GROUPS):
            parser.error(
                "--groups needs --output: the published results are of all groups"
            )
        output = ROOT / "benchmarks" / "results"
    output.mkdir(parents=True, exist_ok=True)
    commit = _commit()
    measured: list[Comparison] = []
    failed = False
    for group in options.groups:
        found, status = _measure(group, options.device, options.grid)
        measured += found
        if status:
            print(
                f"error: {group}: pytest exited with {status}, {len(found)} cases were measured",
                file=sys.stderr,
            )
            failed = True
    if not measured:
        return 1
    results = Results(
        device=options.device,
        grid=options.grid,
        commit=commit,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        threads=THREADS,
        environment={**collect_env(), "processor": _processor()},
        comparisons=measured,
    )
    _write(results, output)
    return int(failed)


def _measure(group: str, device: str, grid: str) -> tuple[list[Comparison], int]:
    """The comparisons that passed their checks, and pytest's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.json"
        command = [sys.executable, "-m", "pytest", f"benchmarks/bench_{group}.py"]
        command += ["--device", device, "--grid", grid, "--benchmark-json", str(path)]
        command += [
            "--benchmark-columns=median,iqr,rounds",
            "-q",
            "-p",
            "no:cacheprovider",
        ]
        # The timeout for hanging tests would end a long case too, and its whole group.
        command += ["-o", "faulthandler_timeout=0"]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        # A group that did not finish leaves no report.
        if not path.exists():
            return [], status
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    timed = (item["extra_info"] for item in report["benchmarks"])
    return [comparison(found) for found in timed if found], status


def _write(results: Results, folder: Path) -> None:
    name = results.device.replace(":", "")
    results.write(folder / f"{name}.json")
    picture = folder / f"{name}.png"
    drawn = write_growth(results, picture)
    if not drawn:
        picture.unlink(missing_ok=True)
    write_page(results, folder / f"{name}.md", picture.name if drawn else None)
    print(f"wrote {name}.json and {name}.md in {folder}")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    described = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def _processor() -> str:
    """The CPU's name according to Linux; "unknown" elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [
        line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
    ]
    return names[0] if names else "unknown"


if __name__ == "__main__":
    sys.exit(main())
