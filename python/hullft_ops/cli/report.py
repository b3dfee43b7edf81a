"""``hullft-ops report``: what the rows of an evaluation say."""

from pathlib import Path

import tyro

from hullft_ops._terminal import echo
from hullft_ops.evaluation.report import REPORT_FILES, print_report, write_report
from hullft_ops.evaluation.results import read_rows
from hullft_ops.evaluation.statistics import Measurements
from hullft_ops.ttft.files import check_output, new_folder


def report(
    results: tyro.conf.Positional[Path],
    *,
    output: Path = Path("hullft_report"),
    score: str | None = None,
    overwrite: bool = False,
) -> None:
    """Print a table of an evaluation; write it with a picture as a page of HTML.

    Args:
        results: results file of hullft-ops evaluate; xz may have compressed it.
        output: folder for report.html and report.png.
        score: what to compare by: continuation or prompt; None for the first that every row has.
        overwrite: replace a folder that an earlier report wrote.
    """
    check_output(output, inputs=[results], overwrite=overwrite)
    rows = read_rows(results)
    if not rows:
        raise ValueError(f"results {results}: has no rows")
    measured = Measurements.of(rows, score)
    with new_folder(output, REPORT_FILES, overwrite=overwrite) as folder:
        write_report(measured, folder)
    print_report(measured)
    echo(output)
