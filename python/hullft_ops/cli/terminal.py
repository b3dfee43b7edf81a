"""An evaluation on the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hullft_ops._terminal import echo, printable
from hullft_ops.evaluation.report import (
    cells_of,
    meanings,
    score_title,
    title_of,
    verdicts,
)
from hullft_ops.evaluation.scores import TITLES
from hullft_ops.evaluation.statistics import Measurements


def print_report(measured: Measurements) -> None:
    """Print an evaluation's table, and the best setting of each method."""
    table = Table(box=SIMPLE_HEAD, title=title_of(measured), pad_edge=False)
    # The columns that fit a terminal.
    others = [TITLES[name] for name in measured.other_scores]
    numbers = (score_title(measured), "against none", *others, "finetune", "passes")
    table.add_column("configuration")
    for name in numbers:
        table.add_column(name, justify="right")
    for cells in cells_of(measured):
        columns = ("configuration", *numbers)
        table.add_row(*(printable(cells.get(name, "")) for name in columns))
    Console(markup=False).print(table)
    echo(*meanings(measured), *verdicts(measured))
