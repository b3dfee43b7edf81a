"""An evaluation's report as Markdown and as one HTML page that needs no other file."""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, cycle
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from hullft_ops.ttft._files import replacing, write_durably
from hullft_ops.ttft.evaluation.config import family
from hullft_ops.ttft.evaluation.results import MERGE, Row, read_rows
from hullft_ops.ttft.evaluation.statistics import (
    CONFIDENCE,
    NONE,
    Measurements,
    at_time,
    pareto,
    relative,
)

TITLE = "Evaluation of test-time finetuning"
PICTURE = "report.png"
_MARKERS = "osD^vP*Xhd"
_EXAMPLES = 4
# Between these two, text can change only its own direction. There are four such marks, in pairs.
ISOLATE, END_ISOLATE = "\u2068", "\u2069"
_ISOLATES = dict.fromkeys(range(0x2066, 0x206A))
Cells = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, and a table or a picture below them.

    ``verbatim``: the table's last column has texts whose layout matters.
    """

    title: str
    paragraphs: list[str]
    header: Cells = ()
    table: list[Cells] = field(default_factory=list)
    picture: str | None = None
    verbatim: bool = False


def report_sections(measured: Measurements, picture: str) -> list[Section]:
    """The sections of a report; ``picture`` names the file of the plot."""
    line = "The line joins the configurations that no other beats in both quality and time."
    plot = Section("Quality against time", [line], picture=picture)
    sections = [_overview(measured), _quality_and_time(measured), plot]
    if len(leaders(measured)) > 1:
        sections += [_between_methods(measured), _equal_time(measured)]
    return [*sections, _by_domain(measured), _conditions(measured)]


def example_section(measured: Measurements) -> Section:
    """The prompts that the best configuration helps most and least, each with its beginning."""
    best = min(measured.configs[1:], key=measured.mean_bits)
    ranked = sorted(measured.rows[best], key=_gain)
    table: list[Cells] = []
    for row in ranked[:_EXAMPLES] + ranked[_EXAMPLES:][-_EXAMPLES:]:
        bits = f"{row.bits_per_byte_before:.3f}", f"{row.bits_per_byte_after:.3f}"
        table.append((row.domain, *bits, f"{_gain(row):+.1%}", row.excerpt))
    header = ("domain", "bits per byte before", "after", "change", "text")
    text = f"With {_name(best)}. The table shows the beginning of each prompt."
    return Section(
        "Prompts helped most and least", [text], header, table, verbatim=True
    )


def leaders(measured: Measurements) -> list[str]:
    """The configuration with the fewest bits per byte, for each `family` and refresh."""
    groups: dict[tuple[str, int], list[str]] = {}
    for config in measured.configs[1:]:
        settings = measured.settings(config)
        groups.setdefault((family(settings), settings["refresh"]), []).append(config)
    return [min(group, key=measured.mean_bits) for group in groups.values()]


def hurt_sentences(names: list[str]) -> list[str]:
    """Says which configurations are worse than no adaptation; nothing where none is."""
    shown = ", ".join(names)
    hurts = (
        f"Adapting hurts: on average, prompts take more bits with {shown} than without."
    )
    return [hurts] if names else []


def _overview(measured: Measurements) -> Section:
    first = measured.rows[measured.configs[1]][0]
    counted = sorted(Counter(measured.domains.tolist()).items())
    counts = ", ".join(f"{_name(domain)} {count}" for domain, count in counted)
    lines = [
        f"{len(measured.prompts)} held-out prompts ({counts}), {len(measured.rows)} "
        f"configurations, seed {first.seed}. The methods retrieve texts for a prompt, train on "
        "those, and score the prompt. Every prompt has the same weight.",
        f"Brackets are {CONFIDENCE:.0%} intervals of a paired bootstrap over the prompts.",
    ]
    if measured.incomplete:
        lines.append(
            f"{measured.incomplete} prompts are left out: not every configuration ran."
        )
    for config, count in measured.failed.items():
        lines.append(
            f"Left out: {_name(config)}, whose loss was not finite on {count} prompts."
        )
    return Section("Runs", lines)


def _quality_and_time(measured: Measurements) -> Section:
    merging = any(MERGE in measured.mean_stages(config) for config in measured.configs)
    none, count = measured.mean_bits(NONE), len(measured.prompts)

    def cells(config: str) -> dict[str, str]:
        stages = measured.mean_stages(config)
        return {
            "configuration": config,
            "bits per byte": f"{measured.mean_bits(config):.4f}",
            "against none": f"{measured.relative_bits(config, NONE):+.1%}",
            "better on": f"{measured.prompts_below(config, NONE)} of {count}",
            "worse on": f"{measured.prompts_below(NONE, config)} of {count}",
            "embed and search": f"{stages['embed'] + stages['search']:.3f} s",
            "select": f"{1e3 * stages['select']:.2f} ms",
            **({MERGE: f"{stages.get(MERGE, 0):.3f} s"} if merging else {}),
            "finetune": f"{stages['finetune']:.3f} s",
            "total": f"{measured.mean_seconds(config):.3f} s",
            "passes": f"{measured.mean_of(config, 'passes'):.1f}",
            "texts": f"{measured.mean_of(config, 'support_size'):.1f}",
        }

    ranked = sorted(measured.configs[1:], key=measured.mean_bits)
    rows = [cells(config) for config in ranked]
    header = tuple(rows[0])
    table: list[Cells] = [(NONE, f"{none:.4f}", *[""] * (len(header) - 2))]
    table += [tuple(row.values()) for row in rows]
    hurt = [_name(config) for config in ranked if measured.mean_bits(config) > none]
    lines = ["Means over the prompts.", *hurt_sentences(hurt)]
    return Section("Quality and time", lines, header, table)


def _between_methods(measured: Measurements) -> Section:
    table: list[Cells] = []
    for other, config in combinations(leaders(measured), 2):
        bits = measured.relative_bits(config, other)
        below = f"{measured.prompts_below(config, other)} of {len(measured.prompts)}"
        speed = f"{measured.finetuning_speed(config, other):.2f x}"
        table.append((config, other, f"{bits:+.1%}", bits.verdict, below, speed))
    compared = ("configuration", "against", "bits per byte", "so it is")
    header = (*compared, "better on", "finetuning speed")
    text = (
        "This table compares the best configuration of each method and refresh. The best is chosen "
        "on these same prompts, which flatters a method with several configurations a little."
    )
    return Section("Between methods", [text], header, table)


def _equal_time(measured: Measurements) -> Section:
    methods = sorted({family(measured.settings(config)) for config in measured.rows})
    table: list[Cells] = []
    for config in leaders(measured):
        seconds, own = measured.mean_seconds(config), family(measured.settings(config))
        for rival in methods:
            other = None if rival == own else at_time(measured, rival, seconds)
            if other is not None:
                bits = relative(measured.bits_of(config), other.bits)
                against = " to ".join(other.configs), f"{other.seconds:.3f} s"
                cells = (
                    config,
                    f"{seconds:.3f} s",
                    *against,
                    f"{bits:+.1%}",
                    bits.verdict,
                )
                table.append(cells)
    text = (
        "This table compares the best configuration of each method and refresh with every other "
        "method at the same mean time. Two configurations of the other method enclose that time; "
        "the pair with the best mean counts. Each prompt's bits per byte are interpolated linearly "
        "in their mean seconds. If the other method gains nothing from more time, its faster "
        "configuration counts. A method that is never that fast has no row."
    )
    header = ("configuration", "takes", "against", "takes", "bits per byte", "so it is")
    return Section("At equal time", [text], header, table)


def _by_domain(measured: Measurements) -> Section:
    domains = sorted(set(measured.domains.tolist()))

    def cell(config: str, domain: str) -> str:
        bits = measured.bits_of(config)[measured.domains == domain].mean()
        change = (
            ""
            if config == NONE
            else f" {measured.relative_bits(config, NONE, domain):+.1%}"
        )
        return f"{bits:.4f}{change}"

    configs = [NONE, *leaders(measured)]
    table: list[Cells] = [
        (config, *(cell(config, name) for name in domains)) for config in configs
    ]
    text = "Bits per byte, and the change against no adaptation."
    return Section("By domain", [text], ("configuration", *domains), table)


def _conditions(measured: Measurements) -> Section:
    rows = [row for of_config in measured.rows.values() for row in of_config]
    versions = sorted(
        {_name(f"{k} {v}") for row in rows for k, v in row.versions.items() if v}
    )
    threads = sorted({row.threads for row in rows})
    lines = [
        f"Run {_name(rows[0].run)}; {', '.join(versions)}; "
        f"torch threads {', '.join(map(str, threads))}.",
        "Seconds are wall-clock, on that machine under its load at the time.",
    ]
    if len({(repr(sorted(row.versions.items())), row.threads) for row in rows}) > 1:
        lines.append("Not all rows are of the same versions, device and threads.")
    return Section("Conditions", lines)


def _gain(row: Row) -> float:
    return (row.bits_per_byte_after or 0.0) / row.bits_per_byte_before - 1


def _name(text: str) -> str:
    """The name, marked so that it cannot change the direction of the sentence around it."""
    return (
        text if text.isascii() else f"{ISOLATE}{text.translate(_ISOLATES)}{END_ISOLATE}"
    )


def write_report(results: Path, directory: Path) -> list[Path]:
    """Write ``report.md``, ``report.png`` and ``report.html``. Each appears whole or not at all."""
    measured = Measurements.of(read_rows(results))
    directory.mkdir(parents=True, exist_ok=True)
    sections = report_sections(measured, PICTURE)
    picture = directory / PICTURE
    write_plot(measured, picture)
    page = html([*sections, example_section(measured)], {PICTURE: picture.read_bytes()})
    pages = {
        directory / "report.md": markdown(sections),
        directory / "report.html": page,
    }
    for path, text in pages.items():
        write_durably(path, text.encode())
    return [*pages, picture]


def markdown(sections: Sequence[Section]) -> str:
    """The sections as Markdown, with a link to each picture."""
    parts = [f"# {TITLE}"]
    for section in sections:
        parts += [f"## {section.title}", *map(_plain, section.paragraphs)]
        if section.table:
            lines = [section.header, ("---",) * len(section.header), *section.table]
            cells = [
                [_plain(cell).replace("|", "\\|") for cell in line] for line in lines
            ]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
        if section.picture:
            parts.append(f"![{section.title}]({section.picture})")
    return "\n\n".join(parts) + "\n"


def html(sections: Sequence[Section], pictures: dict[str, bytes]) -> str:
    """The sections as one page. It contains the PNG pictures and escapes every text."""
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True)
    environment.filters["isolated"] = _isolated
    encoded = {
        name: base64.b64encode(content).decode() for name, content in pictures.items()
    }
    page = environment.get_template("report.html.jinja")
    return page.render(title=TITLE, sections=sections, pictures=encoded)


def _isolated(text: str) -> Markup:
    escaped = str(escape(text))
    return Markup(escaped.replace(ISOLATE, "<bdi>").replace(END_ISOLATE, "</bdi>"))


def _plain(text: str) -> str:
    """The text on one line, without HTML, which Markdown would pass on."""
    return " ".join(text.splitlines()).replace("&", "&amp;").replace("<", "&lt;")


def write_plot(measured: Measurements, path: Path) -> None:
    """Draw bits per byte against seconds as a PNG; the file appears whole or not at all."""
    points = {
        c: (measured.mean_seconds(c), measured.mean_bits(c)) for c in measured.rows
    }
    none, count = measured.mean_bits(NONE), len(measured.prompts)
    groups: dict[str, list[tuple[float, float]]] = {}
    for config, point in points.items():
        settings = measured.settings(config)
        # matplotlib would read a dollar as mathematics.
        label = f"{settings['method']}, refresh {settings['refresh']}".replace(
            "$", r"\$"
        )
        groups.setdefault(label, []).append(point)
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(none, color="#666666", linestyle="--", label=f"{NONE}: {none:.3f}")
    for (label, group), marker in zip(
        sorted(groups.items()), cycle(_MARKERS), strict=False
    ):
        if len(group) == 1:
            label += f": {group[0][1]:.3f}"
        seconds, bits = zip(*group, strict=True)
        # Draw markers whole at the edges, and above the axis.
        axes.plot(
            seconds, bits, marker, label=label, markersize=8, clip_on=False, zorder=3
        )
    front = [points[name] for name in pareto(points)]
    axes.plot(*zip(*front, strict=True), color="#999999", linewidth=1, zorder=1)
    axes.set_xlim(0, 1.05 * max(seconds for seconds, _ in points.values()))
    axes.set_xlabel("seconds per prompt (embedding, search, selection, finetuning)")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title(f"Test-time finetuning: mean of {count} held-out prompts")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
