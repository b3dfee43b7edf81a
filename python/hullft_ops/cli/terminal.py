"""An evaluation on the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hullft_ops._terminal import echo, printable
from hullft_ops.evaluation.report import cells_of, title_of, verdicts
from hullft_ops.evaluation.statistics import Measurements

# The columns of a report that fit a terminal.
_COLUMNS = ("configuration", "bits per byte", "against none", "finetune", "passes")


def print_report(measured: Measurements) -> None:
    """Print an evaluation's table, and the best setting of each method."""
    table = Table(box=SIMPLE_HEAD, title=title_of(measured), pad_edge=False)
    first, *others = _COLUMNS
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    for cells in cells_of(measured):
        table.add_row(*(printable(cells.get(name, "")) for name in _COLUMNS))
    Console(markup=False).print(table)
    echo(*verdicts(measured))
