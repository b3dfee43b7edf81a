"""``hullft-ops report``: what the rows of an evaluation say."""

from pathlib import Path

import tyro

from hullft_ops.evaluation.report import print_report
from hullft_ops.evaluation.results import read_rows
from hullft_ops.evaluation.statistics import Measurements
from hullft_ops.ttft.validation import InputError


def report(results: tyro.conf.Positional[Path], *, score: str | None = None) -> None:
    """Print an evaluation's table: each setting against none, and against the best.

    Args:
        results: results file of hullft-ops evaluate; xz may have compressed it.
        score: what to compare by: continuation, prompt, line or similarity; None for the first
            that all have.
    """
    rows = read_rows(results)
    if not rows:
        raise ValueError(f"results {results}: has no rows")
    try:
        measurements = Measurements.of(rows, score)
    except InputError as error:
        raise InputError(f"results {results}: {error}") from error
    print_report(measurements)
