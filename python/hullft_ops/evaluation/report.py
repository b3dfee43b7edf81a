"""An evaluation's report: a table, and what to know to read it."""

from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hullft_ops.evaluation.scores import METRICS
from hullft_ops.evaluation.statistics import CONFIDENCE, Measurements
from hullft_ops.ttft.terminal import counted, echo, printable

NONE = "no adaptation"


def print_report(measured: Measurements) -> None:
    """Print an evaluation's table, and what to know to read it."""
    title = f"Means over {counted(len(measured.before), 'held-out prompt')}"
    table = Table(box=SIMPLE_HEAD, title=title, pad_edge=False)
    rows = cells_of(measured)
    # The row of no adaptation lacks some columns.
    [settings, *others] = rows[-1]
    table.add_column(settings, overflow="fold", min_width=len(NONE))
    for name in others:
        table.add_column(name, justify="right")
    for cells in rows:
        table.add_row(*(printable(cells.get(name, "")) for name in rows[-1]))
    Console(markup=False).print(table)
    echo(METRICS[measured.score].meaning, *notes(measured))


def cells_of(measured: Measurements) -> list[dict[str, str]]:
    """The cells of no adaptation, and of each configuration, the best first, by column."""
    title, names = METRICS[measured.score].title, measured.names()
    rows = [{"settings": NONE, title: f"{measured.before.mean():.4f}"}]
    [best, *_] = measured.after.values()
    for config, after in measured.after.items():
        measurements = measured.rows[config]
        rows.append(
            {
                "settings": names[config],
                title: f"{after.mean():.4f}",
                "against none": measured.change(after, measured.before),
                "against the best": measured.change(after, best),
                "adapting": f"{fmean(row.seconds_total for row in measurements):.3f} s",
                "passes": f"{fmean(row.passes for row in measurements):.1f}",
            }
        )
    return rows


def notes(measured: Measurements) -> list[str]:
    """What all configurations share, what brackets are, and what is left out."""
    shared = measured.shared()
    lines = [f"Shared settings: {' '.join(shared)}."] if shared else []
    lines.append(
        f"Brackets are {CONFIDENCE:.0%} intervals of a paired bootstrap over the prompts; of fewer "
        "than 10 they say little."
    )
    if measured.incomplete:
        count = counted(measured.incomplete, "prompt")
        lines.append(f"{count} left out, on which some configuration has no score.")
    return lines + [f"Left out, for an error: {each}." for each in measured.failed]
