"""A comparison of methods as a table, as JSON and as a picture."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from hullft_ops.ttft.comparison import METHODS, Comparison

_COLUMNS = (
    "bits per\nbyte",
    "against\nnone",
    "retrieve\ns",
    "select\ns",
    "finetune\ns",
    "passes",
    "support",
)
_LABELS = {method.key: method.label for method in METHODS}
_COLOURS = {
    "none": "#666666",
    "knn": "#c0562f",
    "hullft_refresh1": "#2b6cb0",
    "hullft_refresh2": "#1f8a5b",
}


def comparison_table(comparison: Comparison) -> Table:
    """A row for each method: means over the prompts."""
    table = Table(title=f"Mean of {len(comparison.prompts)} held-out prompts")
    table.add_column("method")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for method in METHODS:
        mean = comparison.mean(method.key)
        cells = (
            f"{comparison.relative_to_none(method.key):+.1%}",
            f"{mean.seconds_retrieve:.3f}",
            f"{mean.seconds_select:.4f}",
            f"{mean.seconds_finetune:.2f}",
            f"{mean.forward_backward_passes:.1f}",
            f"{mean.support_size:.1f}",
        )
        shown = cells if method.selection else ("",) * len(cells)
        table.add_row(method.label, f"{mean.bits_per_byte:.4f}", *shown)
    return table


def write_json(comparison: Comparison, path: Path) -> None:
    """Write ``comparison.as_json()``; the file appears whole or not at all."""
    text = json.dumps(comparison.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
    with _replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_plot(comparison: Comparison, path: Path) -> None:
    """Draw quality against time as a PNG; the file appears whole or not at all."""
    figure = _quality_against_time(comparison)
    with _replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def comparison_sentences(comparison: Comparison) -> list[str]:
    """What the table does not show: how often, and what was scored."""
    verdicts = comparison.verdicts()
    count = verdicts["prompts"]
    lines = []
    for other in ("none", "knn"):
        below = verdicts[f"prompts_below_{other}"]
        shown = ", ".join(f"{_LABELS[key]} on {below[key]}" for key in below)
        lines.append(f"Below {_LABELS[other]}, of {count} prompts: {shown}.")
    return lines


def _quality_against_time(comparison: Comparison) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    none = comparison.mean("none").bits_per_byte
    axes.axhline(none, color=_COLOURS["none"], linestyle="--", linewidth=1.2)
    _label(axes, "none", f"no adaptation: {none:.3f}", (0.0, none), (6, -5), "top")
    for method in METHODS:
        if method.selection:
            mean = comparison.mean(method.key)
            point = (mean.seconds_total, mean.bits_per_byte)
            axes.plot(*point, "o", markersize=10, color=_COLOURS[method.key])
            change = comparison.relative_to_none(method.key)
            text = f"{method.label}\n{mean.bits_per_byte:.3f} ({change:+.1%})"
            _label(axes, method.key, text, point, (9, 0), "center")
    slowest = max(comparison.mean(method.key).seconds_total for method in METHODS)
    axes.set_xlim(0, 1.35 * slowest)
    axes.margins(y=0.2)
    axes.set_xlabel("seconds per prompt: retrieval, selection, finetuning")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title(f"Test-time finetuning, mean of {len(comparison.prompts)} held-out prompts")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _label(
    axes: Axes, key: str, text: str, point: tuple[float, float], shift: tuple[int, int], va: str
) -> None:
    axes.annotate(
        text, point, xytext=shift, textcoords="offset points", va=va, color=_COLOURS[key]
    )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
