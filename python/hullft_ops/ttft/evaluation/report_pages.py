"""A report's sections as Markdown and as one HTML page that needs no other file."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hullft_ops._files import replacing
from hullft_ops.ttft.evaluation.measurements import Measurements
from hullft_ops.ttft.evaluation.report_plot import write_plot
from hullft_ops.ttft.evaluation.report_sections import (
    END_ISOLATE,
    ISOLATE,
    Section,
    example_section,
    report_sections,
)
from hullft_ops.ttft.evaluation.results import read_rows

TITLE = "Evaluation of test-time finetuning"
PICTURE = "report.png"


def write_report(results: Path, directory: Path) -> list[Path]:
    """Write ``report.md``, ``report.png`` and ``report.html``; each appears whole or not at all.

    Args:
        results: a results file of `evaluate` or `tune`.
        directory: where to; made where there is none.

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
    """The sections as one page: PNG pictures are inside of it, and every text is escaped."""
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
    """On one line, and no HTML, which Markdown would pass on."""
    return " ".join(text.splitlines()).replace("&", "&amp;").replace("<", "&lt;")
