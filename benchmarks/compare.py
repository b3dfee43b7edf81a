"""Each case before and after a change: ``python -m benchmarks.compare BEFORE.json AFTER.json``.

Both files come from ``pytest benchmarks --benchmark-json FILE.json``.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.recorder import Comparison, format_seconds

# Of a peer's ratio on a quiet machine.
_NOISE = 0.03
_EXPLANATION = (
    "after/before: below 1 is faster. peers: the median of the same ratio of their code, which you "
    "have not changed. Lines marked ! say nothing: their peers moved by more than 3 %, because the "
    "machine was busy. Measure them again."
)


def lines(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for every case that both runs have, and one for each that only one has.

    Raises:
        ValueError: the runs differ in threads, device, instruction set or torch, or share no case.
    """
    _check_machines(before, after)
    old, new = comparisons_of(before), comparisons_of(after)
    common = [name for name in new if name in old]
    if not common:
        raise ValueError("the runs have no case in common")
    width = max(len(name) for name in common)
    headings = f"{'before':>9}{'after':>9}{'after/before':>14}{'peers':>8}"
    table = [f"{'case':{width}}{headings}"]
    for name in common:
        a, b = old[name], new[name]
        seconds = f"{format_seconds(a.seconds):>9}{format_seconds(b.seconds):>9}"
        row = f"{name:{width}}{seconds}{b.seconds / a.seconds:>13.3f}x"
        peers = _peers(a, b)
        if peers is not None:
            mark = " !" if abs(peers - 1) > _NOISE else ""
            row += f"{peers:>7.3f}x{mark}"
        table.append(row)
    table += [f"{name}: only before" for name in old if name not in new]
    table += [f"{name}: only after" for name in new if name not in old]
    return [*table, _EXPLANATION]


def comparisons_of(run: dict[str, Any]) -> dict[str, Comparison]:
    """The cases of pytest-benchmark's file whose checks have passed, by group and case."""
    comparisons = {}
    for benchmark in run["benchmarks"]:
        if benchmark["extra_info"]:
            comparison = Comparison(**benchmark["extra_info"])
            comparisons[f"{comparison.group} {comparison.case}"] = comparison
    return comparisons


def _check_machines(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in ("threads", "device", "simd", "torch"):
        a, b = (run["machine_info"].get(name) for run in (before, after))
        if a != b:
            raise ValueError(f"{name} is {a} before, {b} after")


def _peers(before: Comparison, after: Comparison) -> float | None:
    ratios = [
        after.peers[name] / before.peers[name]
        for name in after.peers
        if name in before.peers
    ]
    return median(ratios) if ratios else None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    try:
        before = json.loads(arguments.before.read_text(encoding="utf-8"))
        after = json.loads(arguments.after.read_text(encoding="utf-8"))
        print("\n".join(lines(before, after)))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
