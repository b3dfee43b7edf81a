"""A comparison of methods as a table, as JSON and as a picture."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from hullft_ops._files import replacing
from hullft_ops.ttft.comparison import METHODS, Comparison

_COLUMNS = (
    "bits per\nbyte",
    "against\nnone",
    "search\ns",
    "select\ns",
    "finetune\ns",
    "passes",
    "support",
)
_LABELS = {method.key: method.label for method in METHODS}
_MARKERS = {"knn": "^", "hullft_refresh1": "s", "hullft_refresh2": "o"}


def comparison_table(comparison: Comparison) -> Table:
    """A row for each method: means over the prompts."""
    title = f"Mean of {len(comparison.prompts)} held-out prompts"
    # Without the usual padding it fits a terminal of 80 columns.
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for method in METHODS:
        mean = comparison.mean(method.key)
        cells = (
            f"{comparison.relative_to_none(method.key):+.1%}",
            f"{mean.seconds_embed + mean.seconds_search:.3f}",
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
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_plot(comparison: Comparison, path: Path) -> None:
    """Draw quality against time as a PNG; the file appears whole or not at all."""
    figure = _quality_against_time(comparison)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def comparison_sentences(comparison: Comparison) -> list[str]:
    """What the table does not show: how often, and what was scored."""
    verdicts = comparison.verdicts()
    count = verdicts["prompts"]
    lines = []
    for other in ("none", "knn"):
        below = verdicts[f"prompts_below_{other}"]
        shown = ", ".join(f"{_LABELS[key]} on {n} of {count} prompts" for key, n in below.items())
        lines.append(f"Fewer bits than {_LABELS[other]}: {shown}.")
    hurt = [m.label for m in METHODS if comparison.relative_to_none(m.key) > 0]
    if hurt:
        names = ", ".join(hurt)
        lines.append(
            f"Adapting hurts: on average, prompts take more bits with {names} than without."
        )
    return lines


def _quality_against_time(comparison: Comparison) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    none = comparison.mean("none").bits_per_byte
    axes.axhline(none, color="#666666", linestyle="--", label=f"no adaptation: {none:.3f}")
    for method in METHODS:
        if method.selection:
            mean = comparison.mean(method.key)
            change = comparison.relative_to_none(method.key)
            axes.plot(
                mean.seconds_total,
                mean.bits_per_byte,
                _MARKERS[method.key],
                markersize=11,
                label=f"{method.label}: {mean.bits_per_byte:.3f} ({change:+.1%})",
            )
    slowest = max(comparison.mean(method.key).seconds_total for method in METHODS)
    axes.set_xlim(0, 1.2 * slowest)
    axes.margins(y=0.25)
    axes.set_xlabel("seconds per prompt (search, selection, finetuning)")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title(f"Test-time finetuning: mean of {len(comparison.prompts)} held-out prompts")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", frameon=False)
    return figure
