"""An evaluation's report: a table, and in sentences what it says of each method."""

from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hullft_ops.evaluation.statistics import CONFIDENCE, Measurements, named
from hullft_ops.ttft.terminal import counted, echo, printable

NONE = "no adaptation"
# Intervals of fewer prompts say little.
_FEW = 10


def print_report(measured: Measurements) -> None:
    """Print an evaluation's table, and the best setting of each method."""
    title = f"Means over {counted(len(measured.prompts), 'held-out prompt')}"
    table = Table(box=SIMPLE_HEAD, title=title, pad_edge=False)
    rows = cells_of(measured)
    # The row of no adaptation lacks some columns.
    columns = list(rows[-1])
    for name in columns:
        if name == "settings":
            table.add_column(name, overflow="fold", min_width=len(NONE))
        else:
            table.add_column(name, justify="right")
    for cells in rows:
        table.add_row(*(printable(cells.get(name, "")) for name in columns))
    Console(markup=False).print(table)
    echo(measured.metric.meaning, *verdicts(measured))


def cells_of(measured: Measurements) -> list[dict[str, str]]:
    """The cells of no adaptation, and of each configuration, the best first, by column."""
    title, names = measured.metric.title, measured.names()
    rows = [{"settings": NONE, title: f"{measured.before.mean():.4f}"}]
    for config in measured.ranked():
        after, measurements = measured.after[config], measured.rows[config]
        change, *_ = measured.change(after, measured.before).split()
        rows.append(
            {
                "settings": names[config],
                title: f"{after.mean():.4f}",
                "against none": change,
                "adapting": f"{fmean(row.seconds_total for row in measurements):.3f} s",
                "passes": f"{fmean(row.passes for row in measurements):.1f}",
            }
        )
    return rows


def verdicts(measured: Measurements) -> list[str]:
    """What all configurations share, what to doubt, and the best setting of each method against
    none and against the best of all."""
    lines = _doubts(measured)
    names, best = measured.names(), measured.best_of_each_kind()
    for config in best:
        after = measured.after[config]
        change = measured.change(after, measured.before)
        gains = measured.gains(config)
        better = int((gains > 0).sum())
        line = f"{names[config]}: {change} against none, better on {better} of {len(gains)}"
        if config != best[0]:
            behind = measured.change(after, measured.after[best[0]])
            line += f", {behind} against {names[best[0]]}"
        lines.append(f"{line}.")
        if gains.mean() < 0:
            lines.append(f"Adapting hurts: {names[config]} scores worse than none.")
    return lines


def _doubts(measured: Measurements) -> list[str]:
    shared = named(measured.shared(), measured.shared())
    lines = [f"Shared settings: {shared}."] if shared else []
    lines.append(
        f"Brackets are {CONFIDENCE:.0%} intervals of a paired bootstrap over the prompts."
    )
    if len(measured.prompts) < _FEW:
        lines.append(f"Intervals of fewer than {_FEW} prompts say little.")
    if measured.incomplete:
        count = counted(measured.incomplete, "prompt")
        lines.append(f"{count} left out, on which some configuration has no score.")
    for settings in measured.failed.values():
        lines.append(f"Left out, for an error: {named(settings, settings)}.")
    return lines
