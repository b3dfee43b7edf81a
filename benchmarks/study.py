"""Tables and picture of a study, from the rows that `hullft-ops evaluate` wrote.

    python -m benchmarks.study benchmarks/results/smollm2/rows.jsonl README.md \\
        docs/results/smollm2.md --picture docs/smollm2.png

fills the tables of the pages, between ``<!-- table NAME -->`` and ``<!-- end -->``, and draws the
picture. ``<!-- table NAME FILE -->`` takes the rows of another file beside the first. A comparison
takes the prompts that both of its configurations ran on.
"""

import argparse
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.tables import filled as fill_tables
from hullft_ops.ttft.evaluation.results import Row, read_rows
from hullft_ops.ttft.evaluation.statistics import NONE, Measurements

# What the page compares: a configuration, and its rival.
COMPARED = (
    ("5 texts", "kNN 20 steps"),
    ("HullFT 20 steps, refresh 2", "kNN 20 steps"),
    ("HullFT 20 steps, refresh 2", "kNN 15 steps"),
    ("HullFT 20 steps, refresh 2", "SIFT 20 steps"),
    ("SIFT 20 steps", "kNN 20 steps"),
    ("HullFT 20 steps", "kNN 20 steps"),
    ("HullFT 20 steps", "SIFT 20 steps"),
    ("kNN 20 steps, rate 1e-4", "kNN 20 steps"),
    ("HullFT 20 steps, refresh 2", "kNN 20 steps, rate 1e-4"),
    ("5 texts", "kNN 20 steps, rate 1e-4"),
    ("one adapter", "kNN 20 steps, rate 1e-4"),
    ("HullFT 50 steps, refresh 2", "kNN 50 steps"),
    ("HullFT 50 steps, refresh 2", "kNN 20 steps"),
    ("kNN 50 steps", "kNN 20 steps"),
    ("HullFT 50 steps, refresh 2", "HullFT 20 steps, refresh 2"),
    ("5 texts", "kNN 50 steps"),
    ("HullFT 20 steps, refresh 2, 5 texts", "5 texts"),
    ("kNN 5 steps, 5 texts", "5 texts"),
    ("experts", "kNN 20 steps"),
    ("experts", "nearest expert"),
    ("experts", "experts by softmax"),
    ("experts, kNN 5 steps", "kNN 20 steps"),
    ("experts, 1 text", "1 text"),
    ("experts, 1 text", "5 texts"),
    ("experts, 5 texts", "5 texts"),
    ("experts, 5 texts", "HullFT 20 steps, refresh 2, 5 texts"),
    ("experts, kNN 5 steps, 5 texts", "experts, 5 texts"),
    ("one adapter", "kNN 20 steps"),
    ("one adapter", "experts"),
    ("one adapter, 5 texts", "5 texts"),
    ("one adapter, 5 texts", "experts, 5 texts"),
    ("one adapter, kNN 5 steps", "one adapter"),
    ("one adapter, kNN 5 steps, 5 texts", "one adapter, 5 texts"),
    ("15 texts", "5 texts"),
    ("experts, 15 texts", "15 texts"),
    ("experts, 5 texts", "15 texts"),
)
# The README's table, on the prompts that all of these ran on.
HEADLINE = (
    "kNN 20 steps",
    "HullFT 20 steps, refresh 2",
    "5 texts",
    "HullFT 20 steps, refresh 2, 5 texts",
    "experts",
    "experts, 5 texts",
    "one adapter",
    "one adapter, 5 texts",
)
DRAWN = (
    *HEADLINE,
    "nearest expert",
    "1 text",
    "experts, 1 text",
    "kNN 5 steps",
    "experts, kNN 5 steps",
)
# An interval over fewer says nothing.
LEAST_PROMPTS = 8
# The digest of the folder that `benchmarks.one_adapter` made.
ONE_ADAPTER = "91ea1c37"
# The paper's learning rate. Labels name any other.
RATE = 5e-5
METHODS = {"knn": "kNN", "sift": "SIFT", "hullft": "HullFT", "random": "random"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("pages", type=Path, nargs="*")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    for page in arguments.pages:
        page.write_text(
            filled(page.read_text(encoding="utf-8"), arguments.rows), encoding="utf-8"
        )
    if arguments.picture:
        draw(read_rows(arguments.rows), arguments.picture)


def filled(page: str, rows: Path) -> str:
    """The page with its tables made from the rows of a file, and of files beside it."""
    tables = {"headline": headline, "all": table, "compared": comparisons}
    read = cache(read_rows)

    def make(name: str, file: str | None) -> str:
        path = rows.with_name(file) if file else rows
        return budgets(path) if name == "budgets" else tables[name](read(path))

    return fill_tables(page, make)


def headline(rows: Sequence[Row]) -> str:
    """`HEADLINE` side by side."""
    labelled = by_label(rows)
    all_of_them = Measurements.of([row for name in HEADLINE for row in labelled[name]])
    none = all_of_them.mean_bits(NONE)
    lines = [
        f"| {len(all_of_them.prompts)} prompts | bits per byte | against none | seconds |",
        "| --- | --- | --- | --- |",
        f"| {NONE} | {none:.3f} | | |",
    ]
    for name in HEADLINE:
        config = next(c for c in all_of_them.configs if label(all_of_them, c) == name)
        change, took = (
            all_of_them.relative_bits(config, NONE),
            seconds(all_of_them, config),
        )
        bits = all_of_them.mean_bits(config)
        lines.append(f"| {name} | {bits:.3f} | {change:+.1%} | {took:.1f} |")
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Every configuration on the prompts that it ran on, fewest bits against none first."""
    lines = [
        "| the model gets | prompts | bits per byte | none | against none | seconds | passes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    made = []
    for name, own in by_label(rows).items():
        one = Measurements.of(own)
        config = one.configs[1]
        against = one.relative_bits(config, NONE)
        cells = (
            name,
            str(len(one.prompts)),
            f"{one.mean_bits(config):.3f}",
            f"{one.mean_bits(NONE):.3f}",
            f"{against:+.1%}",
            f"{seconds(one, config):.1f}",
            f"{one.mean_of(config, 'passes'):.1f}",
        )
        made.append((against.value, "| " + " | ".join(cells) + " |"))
    return "\n".join([*lines, *(line for _, line in sorted(made))])


def comparisons(rows: Sequence[Row]) -> str:
    """Each pair of `COMPARED` that the rows have."""
    lines = [
        "| | against | prompts | bits per byte | difference | fewer bits on | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    labelled = by_label(rows)
    for name, rival in COMPARED:
        if name not in labelled or rival not in labelled:
            continue
        both = _common(labelled[name], labelled[rival])
        own, other = (
            next(c for c in both.configs if label(both, c) == n) for n in (name, rival)
        )
        cells = (
            name,
            rival,
            str(len(both.prompts)),
            f"{both.mean_bits(own):.3f}, {both.mean_bits(other):.3f}",
            f"{both.relative_bits(own, other):+.1%}",
            f"{both.prompts_below(own, other)}",
            f"{seconds(both, own):.1f}, {seconds(both, other):.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def budgets(path: Path) -> str:
    """What `benchmarks.budgets` measured, a line a budget."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [
        "| budget, seconds | adaptations | kept | at the latest | passes | bits per byte |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for budget in sorted({row["budget"] for row in rows}):
        own = [row for row in rows if row["budget"] == budget]
        kept = sum(row["seconds"] <= budget + row["seconds_pass"] for row in own)
        passes, bits = (
            mean(row[key] for row in own) for key in ("passes", "bits_per_byte")
        )
        latest = max(row["seconds"] for row in own)
        cells = (
            budget,
            len(own),
            kept,
            f"{latest:.2f} s",
            f"{passes:.1f}",
            f"{bits:.3f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bits against seconds, on the prompts that all of `DRAWN` ran on."""
    labelled = by_label(rows)
    measured = Measurements.of([row for name in DRAWN for row in labelled[name]])
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=150)
    axes.axhline(measured.mean_bits(NONE), color="0.6", linewidth=1)
    axes.annotate(
        NONE, (0.1, measured.mean_bits(NONE)), (0, -10), textcoords="offset points"
    )
    for config in measured.configs[1:]:
        name = label(measured, config)
        point = seconds(measured, config), measured.mean_bits(config)
        kind = (
            "tab:green"
            if "expert" in name or "adapter" in name
            else "tab:blue"
            if "steps" in name
            else "tab:orange"
        )
        axes.plot(*point, "o", color=kind)
        axes.annotate(
            name.replace(", refresh 2", ""),
            point,
            (-5, -11 if "kNN 20" in name else 4) if point[0] > 9 else (5, 4),
            textcoords="offset points",
            horizontalalignment="right" if point[0] > 9 else "left",
            size=8,
        )
    axes.set_xscale("log")
    axes.set_xlim(0.09, 80)
    axes.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    axes.set_xlabel(
        f"seconds a prompt, one core; median of {len(measured.prompts)} prompts"
    )
    axes.set_ylabel("bits per byte")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each configuration that ran on enough prompts, by what it is called here."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = _label(row.settings)
        if name != NONE:
            found.setdefault(name, []).append(row)
    return {name: own for name, own in found.items() if len(own) >= LEAST_PROMPTS}


def seconds(measured: Measurements, config: str) -> float:
    """The median over the prompts: other work on the machine prolongs some of them."""
    return median(row.seconds_total for row in measured.rows[config])


def label(measured: Measurements, config: str) -> str:
    return NONE if config == NONE else _label(measured.settings(config))


def _label(settings: dict[str, Any]) -> str:
    parts = []
    if count := settings.get("n_experts"):
        kind = "nearest expert" if count == 1 else "experts"
        kind = "one adapter" if settings["experts"].startswith(ONE_ADAPTER) else kind
        parts.append(
            f"{kind} by softmax" if settings.get("expert_temperature") else kind
        )
    if settings["n_select"]:
        parts.append(f"{METHODS[settings['method']]} {settings['n_select']} steps")
    if settings["refresh"] > 1:
        parts.append(f"refresh {settings['refresh']}")
    if settings["n_select"] and settings["lr"] != RATE:
        rate = np.format_float_scientific(settings["lr"], trim="-", exp_digits=1)
        parts.append(f"rate {rate}")
    if texts := settings.get("context"):
        parts.append("1 text" if texts == 1 else f"{texts} texts")
    return ", ".join(parts) or NONE


def _common(own: Sequence[Row], other: Sequence[Row]) -> Measurements:
    shared = {row.prompt for row in own} & {row.prompt for row in other}
    return Measurements.of([row for row in (*own, *other) if row.prompt in shared])


if __name__ == "__main__":
    main()
