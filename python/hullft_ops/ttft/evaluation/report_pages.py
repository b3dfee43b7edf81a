"""A report's sections as Markdown and as one HTML page that needs no other file."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hullft_ops.ttft._files import replacing
from hullft_ops.ttft.evaluation.report_sections import (
    END_ISOLATE,
    ISOLATE,
    Section,
    example_section,
    report_sections,
)
from hullft_ops.ttft.evaluation.results import read_rows
from hullft_ops.ttft.evaluation.statistics import NONE, Measurements, pareto

TITLE = "Evaluation of test-time finetuning"
PICTURE = "report.png"


def write_report(results: Path, directory: Path) -> list[Path]:
    """Write ``report.md``, ``report.png`` and ``report.html``. Each appears whole or not at all.

    Args:
        results: a results file of `evaluate` or `tune`.
        directory: the folder for the files; it is created if necessary.

    Raises:
        ConfigError: the file cannot be read, or has nothing to compare.
    """
    measured = Measurements.of(read_rows(results))
    directory.mkdir(parents=True, exist_ok=True)
    sections = report_sections(measured, PICTURE)
    picture = directory / PICTURE
    write_plot(measured, picture)
    pages = {
        directory / "report.md": markdown(sections),
        directory / "report.html": html(
            [*sections, example_section(measured)], {PICTURE: picture.read_bytes()}
        ),
    }
    for path, text in pages.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [*pages, picture]


def markdown(sections: Sequence[Section]) -> str:
    """The sections as Markdown, with a link to each picture."""
    parts = [f"# {TITLE}"]
    for section in sections:
        parts += [f"## {section.title}", *map(_plain, section.paragraphs)]
        if section.table:
            lines = [section.header, ("---",) * len(section.header), *section.table]
            parts.append("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))
        if section.picture:
            parts.append(f"![{section.title}]({section.picture})")
    return "\n\n".join(parts) + "\n"


def html(sections: Sequence[Section], pictures: dict[str, bytes]) -> str:
    """The sections as one page. It contains the PNG pictures and escapes every text."""
    environment = Environment(
        loader=PackageLoader("hullft_ops.ttft.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["isolated"] = _isolated
    encoded = {name: base64.b64encode(content).decode() for name, content in pictures.items()}
    page = environment.get_template("report.html.jinja")
    return page.render(title=TITLE, sections=sections, pictures=encoded)


def _isolated(text: str) -> Markup:
    escaped = str(escape(text))
    return Markup(escaped.replace(ISOLATE, "<bdi>").replace(END_ISOLATE, "</bdi>"))


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """The text on one line, without HTML, which Markdown would pass on."""
    return " ".join(text.splitlines()).replace("&", "&amp;").replace("<", "&lt;")


_MARKERS = "osD^vP*Xhd"


def write_plot(measured: Measurements, path: Path) -> None:
    """Draw bits per byte against seconds as a PNG; the file appears whole or not at all."""
    points = {c: (measured.mean_seconds(c), measured.mean_bits(c)) for c in measured.rows}
    none, count = measured.mean_bits(NONE), len(measured.prompts)
    end = 1.05 * max(seconds for seconds, _ in points.values())
    with quality_plot(path, (8.0, 5.0), none, end, count) as (figure, axes):
        _draw_groups(measured, axes)
        front = [points[name] for name in pareto(points)]
        axes.plot(*zip(*front, strict=True), color="#999999", linewidth=1, zorder=1)
        figure.legend(loc="outside right center", frameon=False)


@contextmanager
def quality_plot(
    path: Path, inches: tuple[float, float], none: float, end: float, prompts: int
) -> Iterator[tuple[Figure, Axes]]:
    """Axes to draw in, with a line at ``none`` bits per byte and seconds up to ``end``.

    After the body they are saved as a PNG. The file appears whole or not at all.
    """
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(none, color="#666666", linestyle="--", label=f"{NONE}: {none:.3f}")
    axes.set_xlim(0, end)
    axes.set_xlabel("seconds per prompt (embedding, search, selection, finetuning)")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title(f"Test-time finetuning: mean of {prompts} held-out prompts")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    yield figure, axes
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_groups(measured: Measurements, axes: Axes) -> None:
    groups: dict[str, list[str]] = {}
    for config in measured.rows:
        settings = measured.settings(config)
        groups.setdefault(f"{settings['method']}, refresh {settings['refresh']}", []).append(config)
    for number, (label, configs) in enumerate(sorted(groups.items())):
        # matplotlib would read it as mathematics.
        label = label.replace("$", r"\$")
        points = [(measured.mean_seconds(c), measured.mean_bits(c)) for c in configs]
        marker = _MARKERS[number % len(_MARKERS)]
        # Draw markers whole at the edges, and above the axis.
        seconds, bits = zip(*points, strict=True)
        axes.plot(seconds, bits, marker, markersize=8, label=label, clip_on=False, zorder=3)
