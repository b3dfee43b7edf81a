"""Draws bits per byte against passes, or seconds, from the rows of an evaluation.

    hullft-ops evaluate ... --output rows.jsonl
    python -m benchmarks.studies.bits_against_passes rows.jsonl --output bits.png [--seconds]

A line is one method with one refresh and rate, and its points are numbers of steps. All points are
means over the prompts that every configuration finished on.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from hullft_ops.evaluation.results import Row, read_rows

Point = tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", action="store_true", help="instead of passes")
    arguments = parser.parse_args()
    rows = read_rows(arguments.rows)
    axis = "seconds" if arguments.seconds else "passes"
    draw(lines(rows, axis), f"{axis} a prompt", arguments.output)


def lines(rows: list[Row], axis: str) -> dict[str, list[Point]]:
    """Points (passes or seconds, bits per byte) of each line, by what the line is called."""
    configs = defaultdict(list)
    for row in rows:
        if row.error is None:
            configs[row.config].append(row)
    shared = set.intersection(*({r.prompt for r in each} for each in configs.values()))
    if not shared:
        raise SystemExit("bits_against_passes: no prompt has all configurations")
    points = defaultdict(list)
    for each in configs.values():
        measured = [row for row in each if row.prompt in shared]
        cost = fmean(_cost(row, axis) for row in measured)
        bits = fmean(row.bits_per_byte_after or 0.0 for row in measured)
        points[_name(measured[0])].append((cost, bits))
    return {name: sorted(points[name]) for name in sorted(points)}


def _cost(row: Row, axis: str) -> float:
    return row.seconds_total if axis == "seconds" else row.passes


def _name(row: Row) -> str:
    """The settings but for the number of steps."""
    if not row.steps:
        return "no steps"
    parts = [str(row.settings["method"])]
    for key, value in row.settings.items():
        if key not in ("method", "n_select"):
            parts.append(f"{key} {value}")
    return ", ".join(parts)


def draw(curves: dict[str, list[Point]], label: str, path: Path) -> None:
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="tight")
    axes = figure.add_subplot()
    for name, points in curves.items():
        costs, bits = zip(*points, strict=True)
        axes.plot(costs, bits, "o-", label=name)
    axes.set_xlabel(label)
    axes.set_ylabel("bits per byte")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
