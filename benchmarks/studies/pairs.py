"""Each setting of an evaluation against others, after each number of forward-backward passes.

    python -m benchmarks.studies.pairs benchmarks/results/smollm2/code.jsonl.xz --against knn sift

prints the figures of docs/results.md: a line for each setting and number of passes, with the mean
score, the median seconds, and the change against no adaptation and against every setting whose name
begins with one of ``--against``. Several files are one table: of the prompts and settings that all
files of a domain have, and of all domains.
"""

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from hullft_ops.evaluation.report import NONE
from hullft_ops.evaluation.results import Row, read_rows
from hullft_ops.evaluation.statistics import Measurements, relative

# By setting and number of passes: the score of each prompt, and the median seconds.
Curves = dict[str, dict[int, tuple[np.ndarray, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--against", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--score")
    arguments = parser.parse_args()
    rows: dict[str, list[Row]] = defaultdict(list)
    for path in arguments.rows:
        for row in read_rows(path):
            rows[row.run].append(row)
    measured = pooled([table_of(run, arguments.score) for run in rows.values()])
    print(f"{len(measured.before)} prompts, {' '.join(measured.shared())}")
    curves = curves_of(measured)
    rivals = [name for name in curves if name.startswith((NONE, *arguments.against))]
    heads = ["setting", "passes", "mean", "seconds", *[f"against {r}" for r in rivals]]
    print(" | ".join(heads))
    for name, points in curves.items():
        for passes, (scores, seconds) in points.items():
            cells = [name, f"{passes}", f"{scores.mean():.4f}", f"{seconds:.1f} s"]
            for rival in rivals:
                others = curves[rival].get(passes)
                cells.append("" if others is None else change(scores, others[0]))
            print(" | ".join(cells))


def table_of(rows: list[Row], score: str | None) -> Measurements:
    # Intervals depend on the order of the prompts in their last digit.
    rows = sorted(rows, key=lambda row: row.prompt)
    return Measurements.of(rows, score)


def pooled(tables: list[Measurements]) -> Measurements:
    """The prompts of all tables, and the settings that each of them has."""
    rows = {
        config: [row for table in tables for row in table.rows[config]]
        for config in tables[0].rows
        if all(config in table.rows for table in tables)
    }
    return replace(tables[0], rows=rows)


def curves_of(measured: Measurements) -> Curves:
    """The curve of each setting. One without a limit of passes is the same after any number."""
    limits = {
        config: rows[0].settings.get("passes") for config, rows in measured.rows.items()
    }
    numbers = sorted(limit for limit in set(limits.values()) if limit) or [0]
    curves: Curves = defaultdict(dict)
    curves[NONE] = dict.fromkeys(numbers, (measured.before, 0.0))
    names = measured.names()
    for config in measured.rows:
        limit = limits[config]
        words = [word for word in names[config].split() if word != f"passes={limit}"]
        curve = curves[" ".join(words) or "adapted"]
        seconds = median(row.seconds_total for row in measured.rows[config])
        for passes in [limit] if limit else numbers:
            curve[passes] = (measured.after[config], seconds)
    return curves


def change(scores: np.ndarray, others: np.ndarray) -> str:
    better = int((scores < others).sum())
    return f"{relative(scores, others).text('+.1%')}, better on {better}"


if __name__ == "__main__":
    main()
