"""An evaluation's report: on the terminal, as a picture, and as one page of HTML."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hullft_ops._terminal import counted, echo, printable
from hullft_ops.evaluation.scores import MEANINGS, TITLES
from hullft_ops.evaluation.statistics import (
    CONFIDENCE,
    Measurements,
    method_of,
    relative,
)

TITLE = "Evaluation of test-time finetuning"
NONE = "no adaptation"
_TEMPLATES = PackageLoader("hullft_ops.evaluation", ".")
# Intervals of fewer prompts say little.
_FEW = 10
# More domains than this would not fit a table.
_DOMAINS = 8
_LABEL_CHARS = 40
_MARKERS = "osD^vP*Xh"
# What `write_report` writes.
REPORT_FILES = ("report.html", "report.png")
Cells = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, and a table or the picture below them."""

    title: str
    paragraphs: list[str]
    header: Cells = ()
    rows: list[Cells] = field(default_factory=list)
    picture: bool = False


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


def write_report(measured: Measurements, folder: Path) -> None:
    """Write ``report.html`` and ``report.png`` into a folder."""
    picture = folder / "report.png"
    draw(measured, picture)
    sections = report_sections(measured)
    page = as_html(sections, picture.read_bytes())
    (folder / "report.html").write_text(page, encoding="utf-8")


def report_sections(measured: Measurements) -> list[Section]:
    """What the report says."""
    sections = [_overview(measured), _all_configurations(measured)]
    sections.append(Section("Quality against time", [], picture=True))
    sections.append(_best_of_each_method(measured))
    if 1 < len(set(measured.domains)) <= _DOMAINS:
        sections.append(_by_domain(measured))
    return [*sections, _conditions(measured)]


def verdicts(measured: Measurements) -> list[str]:
    """The best setting of each method in a sentence, whether it hurts, and what to doubt."""
    lines = [*_shared(measured), *_doubts(measured)]
    names = measured.names()
    for method, config in measured.best_of_each_method().items():
        change = relative(measured.after[config], measured.before)
        lines.append(f"Best of {method}: {names[config]}, {change} against none.")
        if change.value > 0:
            lines.append(f"Adapting hurts: {names[config]} scores worse than none.")
    return lines


def meanings(measured: Measurements) -> list[str]:
    """A sentence about each score."""
    names = [measured.score, *measured.other_scores]
    return [MEANINGS[name] for name in names if name in MEANINGS]


def title_of(measured: Measurements) -> str:
    """What the numbers of a table are."""
    return f"Means over {counted(len(measured.prompts), 'held-out prompt')}"


def score_title(measured: Measurements) -> str:
    """What the score is called."""
    return TITLES.get(measured.score, measured.score)


def cells_of(measured: Measurements) -> list[dict[str, str]]:
    """The cells of each configuration, by column, the best first."""
    score = score_title(measured)
    rows = [{"configuration": NONE, score: f"{measured.before.mean():.4f}"}]
    names = measured.names()
    others = measured.other_scores
    for name in others:
        before = measured.mean_score(measured.ranked()[0], name).before
        rows[0][TITLES[name]] = f"{before:.4f}"
    for config in measured.ranked():
        after = measured.after[config]
        change = relative(after, measured.before)
        better = int((after < measured.before).sum())
        embed_search = measured.mean_seconds(config, "embed", "search")
        cells = {
            "configuration": names[config],
            score: f"{after.mean():.4f}",
            "against none": f"{change.value:+.1%}",
            "interval": change.bounds,
            "better on": f"{better} of {len(after)}",
            **{
                TITLES[name]: f"{measured.mean_score(config, name).after:.4f}"
                for name in others
            },
            "embed and search": f"{embed_search:.3f} s",
            "select": f"{1e3 * measured.mean_seconds(config, 'select'):.2f} ms",
            "finetune": f"{measured.mean_seconds(config, 'finetune'):.3f} s",
            "prefill": f"{measured.mean_seconds(config, 'prefill'):.3f} s",
            "total": f"{measured.mean(config, 'seconds_total'):.3f} s",
            "passes": f"{measured.mean(config, 'passes'):.1f}",
            "passages trained on": f"{measured.mean(config, 'support_size'):.1f}",
        }
        rows.append(cells)
    return rows


def _overview(measured: Measurements) -> Section:
    lines = [
        "For each prompt, which no datastore holds, the methods retrieve passages and finetune the "
        "model on them. Every prompt has the same weight.",
        *meanings(measured),
        f"Brackets are {CONFIDENCE:.0%} intervals of a paired bootstrap over the prompts.",
        *_doubts(measured),
    ]
    return Section(title_of(measured), lines)


def _shared(measured: Measurements) -> list[str]:
    shared = " ".join(measured.shared())
    return [f"All configurations with steps have {shared}."] if shared else []


def _doubts(measured: Measurements) -> list[str]:
    lines = []
    if len(measured.prompts) < _FEW:
        lines.append(f"Intervals of fewer than {_FEW} prompts say little.")
    if measured.incomplete:
        count = counted(measured.incomplete, "prompt")
        lines.append(f"{count} left out, on which some configuration has no score.")
    for config, failures in measured.failed.items():
        count = counted(failures, "prompt")
        lines.append(f"Left out: {config}, which failed on {count}.")
    return lines


def _all_configurations(measured: Measurements) -> Section:
    cells = cells_of(measured)
    header = tuple(cells[-1])
    rows = [tuple(row.get(name, "") for name in header) for row in cells]
    return Section("Configurations", _shared(measured), header, rows)


def _best_of_each_method(measured: Measurements) -> Section:
    best = measured.best_of_each_method()
    names = measured.names()
    leader = next(iter(best.values()))
    rows: list[Cells] = []
    for method, config in best.items():
        after = measured.after[config]
        change = relative(after, measured.before)
        behind = relative(after, measured.after[leader])
        cells = (
            method,
            names[config],
            f"{after.mean():.4f}",
            str(change),
            change.verdict,
            "" if config == leader else f"{behind}, {behind.verdict}",
        )
        rows.append(cells)
    text = (
        "The best setting of each method, chosen on these same prompts, which flatters a method "
        "with many settings a little."
    )
    header = (
        "method",
        "configuration",
        score_title(measured),
        "against none",
        "verdict",
        f"against {names[leader]}",
    )
    return Section("Best of each method", [text], header, rows)


def _by_domain(measured: Measurements) -> Section:
    domains = sorted(set(measured.domains.tolist()))
    rows: list[Cells] = []
    scores = {NONE: measured.before}
    names = measured.names()
    for config in measured.best_of_each_method().values():
        scores[names[config]] = measured.after[config]
    for config, values in scores.items():
        means = [
            f"{values[measured.domains == domain].mean():.4f}" for domain in domains
        ]
        rows.append((config, *means))
    title = f"{score_title(measured).capitalize()}, by domain"
    return Section(title, [], ("configuration", *domains), rows)


def _conditions(measured: Measurements) -> Section:
    first = next(iter(measured.rows.values()))[0]
    conditions = {"run": first.run, "seed": first.seed, "threads": first.threads}
    rows: list[Cells] = []
    for name, value in {**conditions, **first.versions}.items():
        rows.append((name, str(value)))
    text = "Seconds are wall-clock, on one machine under its load at the time."
    return Section("Conditions of the first row", [text], ("condition", "value"), rows)


def as_html(sections: Sequence[Section], picture: bytes) -> str:
    """The sections as one page. It contains the PNG, and escapes every text."""
    environment = Environment(loader=_TEMPLATES, autoescape=True, finalize=printable)
    page = environment.get_template("report.html.jinja")
    encoded = base64.b64encode(picture).decode()
    return page.render(title=TITLE, sections=sections, picture=encoded)


def draw(measured: Measurements, path: Path) -> None:
    """Draw the score against seconds as a PNG: a line for each method and refresh."""
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    none = float(measured.before.mean())
    axes.axhline(none, color="#666666", linestyle="--", label=f"{NONE}: {none:.3f}")
    lines: dict[str, list[tuple[float, float]]] = {}
    for config, after in measured.after.items():
        row = measured.rows[config][0]
        name = method_of(row)
        if row.settings["n_select"]:
            name += f", refresh {row.settings.get('refresh')}"
        point = measured.mean(config, "seconds_total"), float(after.mean())
        lines.setdefault(name, []).append(point)
    for (name, points), marker in zip(
        sorted(lines.items()), cycle(_MARKERS), strict=False
    ):
        seconds, means = np.array(sorted(points)).T
        # matplotlib would read a dollar as mathematics, and a long name takes all the room.
        label = printable(name)[:_LABEL_CHARS].replace("$", r"\$")
        axes.plot(
            seconds, means, f"{marker}-", label=label, markersize=8, clip_on=False
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds per prompt (embedding, search, selection, finetuning)")
    axes.set_ylabel(f"{score_title(measured)} (lower is better)")
    axes.set_title(title_of(measured))
    figure.legend(loc="outside right center")
    figure.savefig(path, format="png", dpi=150)
