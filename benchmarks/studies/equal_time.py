"""Tables and a picture of bits per byte after equal numbers of passes, from an evaluation's rows.

    hullft-ops evaluate --config benchmarks/results/equal_time/code.json --output rows.jsonl
    python -m benchmarks.studies.equal_time rows.jsonl --picture code.png

prints the tables of docs/results/equal_time.md. Every mean and interval is over the prompts that
all configurations with the same context have finished.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hullft_ops.evaluation.results import Row, read_rows
from hullft_ops.evaluation.statistics import Measurements, relative
from hullft_ops.ttft.errors import InputError

METHODS = {"knn": "kNN", "sift": "SIFT", "hullft": "HullFT"}
PASSAGES_ALONE = "passages alone"
RIVALS = ("kNN", "SIFT", PASSAGES_ALONE)
# What a method's name leaves out: they are the columns, the tables, and the same for all.
_LEFT_OUT = ("method", "n_select", "passes", "context", "max_length", "dtype", "noise")
# What two orders of the same passes share.
_OF_A_SELECTION = ("method", "n_select", "refresh")
# For each method's name and number of passes, a row for each prompt, in the same order.
Curves = dict[str, dict[int, list[Row]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument(
        "--best-rates",
        action="store_true",
        help="each method at its rate with the fewest bits, over all numbers of passes",
    )
    arguments = parser.parse_args()
    rows = [row for row in read_rows(arguments.rows) if row.error is None]
    contexts = sorted({row.settings.get("context", 0) for row in rows})
    figure = Figure(figsize=(7.5, 4 * len(contexts)), dpi=150, layout="tight")
    for number, context in enumerate(contexts, start=1):
        curves = curves_of(rows, context)
        if arguments.best_rates:
            curves = at_best_rates(curves)
        axes = figure.add_subplot(len(contexts), 1, number)
        axes.set_title(f"{context} passages in the prompt")
        draw(axes, curves)
        print(f"\n### {context} passages in the prompt\n")
        print("\n".join(table(curves)), end="\n\n")
        print("\n".join([*comparisons(curves), *variants(curves)]))
    if arguments.picture is not None:
        figure.savefig(arguments.picture)


def curves_of(rows: list[Row], context: int) -> Curves:
    """The curves with so many passages in the prompt, on the prompts that all of them have."""
    chosen = []
    for row in sorted(rows, key=lambda row: row.prompt):
        if row.settings.get("context", 0) == context:
            chosen.append(row)
    try:
        measured = Measurements.of(chosen)
    except InputError as error:
        raise SystemExit("equal_time: no prompt has all configurations") from error
    curves: Curves = defaultdict(dict)
    budgets = {row.settings["passes"] for row in chosen if row.settings["n_select"]}
    for cell in measured.rows.values():
        settings = cell[0].settings
        if settings["n_select"]:
            curves[name_of(cell[0])][settings["passes"]] = cell
        else:
            curves[PASSAGES_ALONE] = dict.fromkeys(budgets, cell)
    return {name: curves[name] for name in sorted(curves)}


def name_of(row: Row) -> str:
    """Method and steps, and the settings that tell it from others."""
    settings = row.settings
    parts = [f"{METHODS[settings['method']]} {settings['n_select']}"]
    for key, value in settings.items():
        if key not in _LEFT_OUT:
            parts.append(f"{key} {value}")
    return ", ".join(parts)


def at_best_rates(curves: Curves) -> Curves:
    best: dict[str, tuple[float, str]] = {}
    for name, points in curves.items():
        settings = [part for part in name.split(", ") if not part.startswith("lr ")]
        mean = fmean(bits(cell).mean() for cell in points.values())
        method = ", ".join(settings)
        best[method] = min(best.get(method, (mean, name)), (mean, name))
    return {name: curves[name] for _, name in best.values()}


def table(curves: Curves) -> list[str]:
    """The mean bits per byte of each method after each number of passes, and its seconds."""
    budgets = sorted({passes for points in curves.values() for passes in points})
    first = next(iter(curves.values()))
    cell = next(iter(first.values()))
    none = fmean(row.scores["prompt"].before for row in cell)
    columns = [f"{passes} passes" for passes in budgets]
    lines = [
        _line([f"{len(cell)} prompts", *columns, "seconds"]),
        _line(["---"] * (len(budgets) + 2)),
        _line(["no adaptation", *[f"{none:.4f}"] * len(budgets), ""]),
    ]
    for name, points in curves.items():
        means = [f"{bits(points[passes]).mean():.4f}" for passes in budgets]
        seconds = median(row.seconds_total for row in points[budgets[-1]])
        lines.append(_line([name, *means, f"{seconds:.1f}"]))
    return lines


def settings_of(points: dict[int, list[Row]]) -> dict[str, Any]:
    """What all points of a curve share, and the passes of the first."""
    return points[min(points)][0].settings


def variants(curves: Curves) -> list[str]:
    """Each method in balanced order against the same in the paper's, or with a higher refresh."""
    lines = []
    for name, points in curves.items():
        for other, others in curves.items():
            if not is_variant(settings_of(points), settings_of(others)):
                continue
            changes = [
                str(relative(bits(points[passes]), bits(others[passes])))
                for passes in sorted(points)
            ]
            lines.append(_line([name, other, *changes]))
    return lines


def is_variant(settings: dict[str, Any], other: dict[str, Any]) -> bool:
    same = all(other[key] == settings[key] for key in ("method", "n_select"))
    if not same or "order" in settings:
        return False
    if "order" in other:
        return bool(other["refresh"] == settings["refresh"])
    return bool(other["refresh"] > settings["refresh"])


def comparisons(curves: Curves) -> list[str]:
    """Each method against those of its rivals with the fewest bits after as many passes."""
    budgets = sorted({passes for points in curves.values() for passes in points})
    lines = [
        _line(["", "against", *[f"{passes} passes" for passes in budgets]]),
        _line(["---"] * (len(budgets) + 2)),
    ]
    ours = [name for name in curves if not name.startswith(RIVALS)]
    rivals = [
        rival for rival in RIVALS if any(name.startswith(rival) for name in curves)
    ]
    for name in ours:
        for rival in rivals:
            cells = []
            for passes in budgets:
                best = best_of(rival, curves, passes)
                cell = curves[name][passes]
                change = relative(bits(cell), bits(best))
                fewer = int((bits(cell) < bits(best)).sum())
                cells.append(f"{change}, fewer on {fewer} of {len(best)}")
            lines.append(_line([name, rival, *cells]))
    return lines


def best_of(rival: str, curves: Curves, passes: int) -> list[Row]:
    cells = [curves[name][passes] for name in curves if name.startswith(rival)]
    return min(cells, key=lambda cell: float(bits(cell).mean()))


def bits(cell: list[Row]) -> np.ndarray:
    return np.array([row.scores["prompt"].after for row in cell], dtype=np.float64)


def draw(axes: Any, curves: Curves) -> None:
    """A colour for each method, steps and refresh; the paper's order is dashed."""
    selections: list[list[Any]] = []
    for name, points in curves.items():
        settings = settings_of(points)
        selection = [settings[key] for key in _OF_A_SELECTION]
        if selection not in selections:
            selections.append(selection)
        budgets = sorted(points)
        means = [bits(points[passes]).mean() for passes in budgets]
        style = "o--" if "order" in settings else "o-"
        colour = f"C{selections.index(selection)}"
        axes.plot(budgets, means, style, color=colour, label=name)
        axes.set_xticks(budgets)
    axes.set_xlabel("forward-backward passes")
    axes.set_ylabel("bits per byte")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
