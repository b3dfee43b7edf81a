"""A picture of how cost grows along each axis, with fitted exponents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Results
from hullft_ops.ttft._files import replacing

_MIN_POINTS = 3
_COLUMNS = 3


@dataclass(frozen=True)
class Sweep:
    """The cases that have ``fixed``, along ``axis``."""

    group: str
    axis: str
    label: str
    fixed: dict[str, Any]


_SELECTION = {
    "batch": 64,
    "candidates": 200,
    "dim": 384,
    "n_select": 50,
    "dtype": "float32",
    "variant": "vanilla",
}
_TTFT = {"model": "gpt2", "n_select": 20, "refresh": 2, "lengths": "300", "dtype": None}


def _along(group: str, case: dict[str, Any], axis: str, label: str) -> Sweep:
    return Sweep(
        group, axis, label, {name: case[name] for name in case.keys() - {axis}}
    )


SWEEPS = (
    _along("selection", _SELECTION, "batch", "queries B"),
    _along("selection", _SELECTION, "candidates", "candidates K"),
    _along("selection", _SELECTION, "dim", "dimensions d"),
    _along("selection", _SELECTION, "n_select", "n_select N"),
    Sweep("integerize", "support", "support m", {"n_select": 1000, "dim": 384}),
    Sweep("integerize", "n_select", "n_select N", {"support": 50, "dim": 384}),
    Sweep("replay", "repeats", "steps per sweep r", {"gpt2": True}),
    Sweep("replay", "total", "parameters", {"tensors": 20, "repeats": 4}),
    _along("ttft", _TTFT, "n_select", "optimizer steps N"),
    _along("ttft", _TTFT, "refresh", "steps per gradient"),
)


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """The exponent p of the power law ``seconds ~ size^p`` that fits best on logarithmic scales."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def write_growth(results: Results, path: Path) -> bool:
    """Draws every sweep with at least 3 points; the file appears whole. False if there is none."""
    found = [(sweep, series) for sweep in SWEEPS if (series := _series(results, sweep))]
    if not found:
        return False
    columns = min(len(found), _COLUMNS)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (sweep, series) in zip(grid, found, strict=False):
        _draw(axes, sweep, series)
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True


Series = dict[str, list[tuple[float, float]]]


def _series(results: Results, sweep: Sweep) -> Series:
    series: Series = {}
    for comparison in results.group(sweep.group):
        if sweep.fixed.items() <= comparison.case.items():
            size = float(comparison.case[sweep.axis])
            series.setdefault("hullft_ops", []).append((size, comparison.seconds))
            for peer, timing in comparison.peers.items():
                series.setdefault(peer, []).append((size, timing.seconds))
    return {
        name: sorted(points)
        for name, points in series.items()
        if len({size for size, _ in points}) >= _MIN_POINTS
    }


def _draw(axes: Axes, sweep: Sweep, series: Series) -> None:
    for name, points in series.items():
        sizes, seconds = [p[0] for p in points], [p[1] for p in points]
        label = f"{name}: exponent {exponent(sizes, seconds):.2f}"
        width = 2.2 if name == "hullft_ops" else 1.2
        axes.plot(
            sizes, seconds, marker="o", markersize=4, linewidth=width, label=label
        )
    axes.set_xscale("log")
    measured = sorted({size for points in series.values() for size, _ in points})
    axes.set_xticks(measured, [f"{size:g}" for size in measured])
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.set_title(sweep.group)
    axes.set_xlabel(sweep.label)
    axes.set_ylabel("seconds")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="x-small", frameon=False)
