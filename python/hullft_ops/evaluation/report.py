"""An evaluation's report: a table, and in sentences what it says of each method."""

from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hullft_ops._terminal import counted, echo, printable
from hullft_ops.evaluation.scores import MEANINGS, TITLES
from hullft_ops.evaluation.statistics import CONFIDENCE, Measurements, relative

NONE = "no adaptation"
# Intervals of fewer prompts say little.
_FEW = 10


def print_report(measured: Measurements) -> None:
    """Print an evaluation's table, and the best setting of each method."""
    rows = cells_of(measured)
    title = f"Means over {counted(len(measured.prompts), 'held-out prompt')}"
    table = Table(box=SIMPLE_HEAD, title=title, pad_edge=False)
    # The row without adaptation lacks some columns.
    columns = list(rows[-1])
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] else "right")
    for cells in rows:
        table.add_row(*(printable(cells.get(name, "")) for name in columns))
    Console(markup=False).print(table)
    echo(*meanings(measured), *verdicts(measured))


def cells_of(measured: Measurements) -> list[dict[str, str]]:
    """The cells of each configuration, by column, the best first."""
    score = TITLES.get(measured.score, measured.score)
    rows = [{"configuration": NONE, score: f"{measured.before.mean():.4f}"}]
    names = measured.names()
    others = measured.other_scores
    for name in others:
        before = measured.mean_score(measured.ranked()[0], name).before
        rows[0][TITLES[name]] = f"{before:.4f}"
    for config in measured.ranked():
        after, measurements = measured.after[config], measured.rows[config]
        seconds = fmean(row.seconds_total for row in measurements)
        cells = {
            "configuration": names[config],
            score: f"{after.mean():.4f}",
            "against none": f"{relative(after, measured.before).value:+.1%}",
            **{
                TITLES[name]: f"{measured.mean_score(config, name).after:.4f}"
                for name in others
            },
            "adapting": f"{seconds:.3f} s",
            "passes": f"{fmean(row.passes for row in measurements):.1f}",
        }
        rows.append(cells)
    return rows


def meanings(measured: Measurements) -> list[str]:
    """A sentence about each score."""
    names = [measured.score, *measured.other_scores]
    return [MEANINGS[name] for name in names if name in MEANINGS]


def verdicts(measured: Measurements) -> list[str]:
    """What all configurations share, what to doubt, and the best setting of each method against
    none and against the best of all."""
    lines = [*_shared(measured), *_doubts(measured)]
    names, best = measured.names(), measured.best_of_each_method()
    leader = next(iter(best.values()))
    for method, config in best.items():
        after = measured.after[config]
        change = relative(after, measured.before)
        better = int((after < measured.before).sum())
        line = (
            f"Best of {method}: {names[config]}, {change} against none, better on {better} of "
            f"{len(after)}"
        )
        if config != leader:
            behind = relative(after, measured.after[leader])
            line += f", {behind} against {names[leader]}"
        lines.append(f"{line}.")
        if change.value > 0:
            lines.append(f"Adapting hurts: {names[config]} scores worse than none.")
    return lines


def _shared(measured: Measurements) -> list[str]:
    shared = " ".join(measured.shared())
    return [f"All configurations with steps have {shared}."] if shared else []


def _doubts(measured: Measurements) -> list[str]:
    lines = [
        f"Brackets are {CONFIDENCE:.0%} intervals of a paired bootstrap over the prompts."
    ]
    if len(measured.prompts) < _FEW:
        lines.append(f"Intervals of fewer than {_FEW} prompts say little.")
    if measured.incomplete:
        count = counted(measured.incomplete, "prompt")
        lines.append(f"{count} left out, on which some configuration has no score.")
    rows = [rows[0] for rows in measured.rows.values()]
    if any(row.settings.get("train_on_prompt") for row in rows):
        lines.append("A prompt that the model was trained on has no score of its own.")
    for config, failures in measured.failed.items():
        count = counted(failures, "prompt")
        lines.append(f"Left out: {config}, which failed on {count}.")
    return lines
