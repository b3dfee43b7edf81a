"""What a report says of given rows, and that it shows foreign text as text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from evaluation_rows import SETTINGS, answered_row, failed_row, result_row
from hullft_ops._terminal import printable
from hullft_ops.evaluation.report import (
    cells_of,
    draw,
    meanings,
    print_report,
    report_sections,
    verdicts,
    write_report,
)
from hullft_ops.evaluation.results import Row
from hullft_ops.evaluation.statistics import Measurements

SCORE = "bits per byte of the prompt"
EVIL = "<script>alert('x')</script>&amp;|a`b`*c*[d](http://e)\n\x1b[2J\u202e\u2066$x$"


def rows_of(
    method: str, after: float, seconds: float, *, prompts: int = 30, domains: str = "ab"
) -> list[Row]:
    """Prompts that take more and more bits; ``after`` is what the first one takes."""
    random = np.random.default_rng(0)
    noise = random.normal(scale=0.01, size=prompts).tolist()
    rows = []

    for number in range(prompts):
        harder = number / 10
        row = result_row(
            f"p{number}",
            config=f"{method} n=3",
            settings={"method": method, "n_select": 3, "refresh": 1, "lr": 1.0},
            domain=domains[number % len(domains)],
            before=2.0 + harder,
            after=after + harder + noise[number],
            seconds={
                "embed": 0.25,
                "search": 0.25,
                "select": 0.001,
                "finetune": seconds,
            },
        )
        rows.append(row)
    return rows


@pytest.fixture
def measured() -> Measurements:
    rows = rows_of("knn", 1.5, 2.0)
    rows += rows_of("hullft", 1.4, 1.0)
    rows += rows_of("random", 2.2, 2.0)
    return Measurements.of(rows)


def test_both_scores_are_shown_with_what_they_mean() -> None:
    measured = Measurements.of([answered_row("p", answer=2.5)])
    none, cells = cells_of(measured)

    assert none["bits per byte of the continuation"] == "3.0000"
    assert none["bits per byte of the prompt"] == "2.0000"
    assert cells["bits per byte of the continuation"] == "2.5000"
    assert cells["bits per byte of the prompt"] == "1.0000"
    assert [line.split()[1] for line in meanings(measured)] == [
        "continuation",
        "prompt",
    ]
    assert set(meanings(measured)) <= set(report_sections(measured)[0].paragraphs)


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        self.tags.add(tag)
        named = dict(attributes)
        self.sources += [str(named[key]) for key in ("src", "href") if key in named]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_configuration_has_its_means(measured: Measurements) -> None:
    none, hullft, knn, random = cells_of(measured)
    assert none == {"configuration": "no adaptation", SCORE: "3.4500"}
    assert [row["configuration"] for row in (hullft, knn, random)] == [
        "hullft n=3",
        "knn n=3",
        "random n=3",
    ]
    assert hullft[SCORE] == f"{measured.after['hullft n=3'].mean():.4f}"
    assert hullft["against none"] == "-17.4%"
    assert hullft["interval"].startswith("[-19.")
    assert (hullft["better on"], random["better on"]) == ("30 of 30", "0 of 30")
    assert hullft["embed and search"] == "0.500 s"
    assert hullft["select"] == "1.00 ms"
    assert hullft["finetune"] == "1.000 s"
    assert hullft["total"] == "1.501 s"
    assert (hullft["passes"], hullft["passages trained on"]) == ("3.0", "2.0")


def test_it_names_each_methods_best_setting_and_what_hurts(
    measured: Measurements,
) -> None:
    lines = verdicts(measured)
    assert lines[0].startswith("Best of hullft: hullft n=3, -17.4% [-19.")
    assert lines[-1] == "Adapting hurts: random n=3 scores worse than none."

    [best] = [s for s in report_sections(measured) if s.title == "Best of each method"]
    assert best.header[-1] == "against hullft n=3"
    assert [row[0] for row in best.rows] == ["hullft", "knn", "random"]
    assert best.rows[0][-2:] == ("better", "")
    assert best.rows[1][-1].endswith("worse")


def test_a_table_names_what_differs_and_says_once_what_its_rows_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {
        "knn n=3 refresh=1 lr=1 dtype=bfloat16": SETTINGS | {"n_select": 3},
        "hullft n=3 refresh=2 lr=1 dtype=bfloat16": {
            "method": "hullft",
            "n_select": 3,
            "refresh": 2,
        },
        "no steps context=5": {"method": "hullft", "n_select": 0, "context": 5},
    }
    rows = [
        result_row("p", config=config, settings=values)
        for config, values in settings.items()
    ]
    measured = Measurements.of(rows)

    _, *cells = cells_of(measured)
    assert [row["configuration"] for row in cells] == [
        "knn n=3 refresh=1",
        "hullft n=3 refresh=2",
        "no steps context=5",
    ]
    lines = verdicts(measured)
    assert lines[0] == "All configurations with steps have lr=1 dtype=bfloat16."
    assert "Best of hullft: hullft n=3 refresh=2, -50.0% against none." in lines

    drawn: list[Figure] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: drawn.append(figure)
    )
    draw(measured, tmp_path / "report.png")
    [legend] = drawn[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[1:] == ["hullft, refresh 2", "knn, refresh 1", "no steps context=5"]


def test_it_says_what_to_doubt() -> None:
    rows = rows_of("knn", 1.5, 2.0, prompts=4)
    rows += rows_of("hullft", 1.4, 1.0, prompts=3)
    rows.append(result_row("p1", config="sift n=3"))
    rows.append(failed_row("p0", config="sift n=3"))
    lines = verdicts(Measurements.of(rows))

    assert lines[:3] == [
        "Intervals of fewer than 10 prompts say little.",
        "1 prompt left out, on which some configuration has no score.",
        "Left out: sift n=3, which failed on 1 prompt.",
    ]
    assert not any("Left out" in line for line in verdicts(Measurements.of(rows[:7])))


def test_domains_have_a_table_if_there_are_a_few(measured: Measurements) -> None:
    [table] = [s for s in report_sections(measured) if "domain" in s.title]
    assert table.header == ("configuration", "a", "b")
    assert table.rows[0] == ("no adaptation", "3.4000", "3.5000")

    one = Measurements.of(rows_of("knn", 1.5, 2.0, domains="a"))
    many = Measurements.of(rows_of("knn", 1.5, 2.0, domains="abcdefghij"))
    for other in (one, many):
        assert not any("domain" in s.title for s in report_sections(other))


def test_the_pages_hold_the_tables_and_the_picture(
    measured: Measurements, tmp_path: Path
) -> None:
    write_report(measured, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())

    assert names == ["report.html", "report.png"]
    assert matplotlib.image.imread(tmp_path / "report.png").shape == (750, 1200, 4)

    page = Page((tmp_path / "report.html").read_text())
    assert page.tags >= {"h1", "h2", "p", "table", "img", "bdi"}

    [source] = page.sources
    assert source.startswith("data:image/png;base64,")
    assert "hullft n=3" in page.text


def test_foreign_text_is_shown_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        result_row(
            f"p{n}",
            config=f"{config} {EVIL}",
            settings={"method": EVIL, "n_select": 3},
            domain=f"{n % 2} {EVIL}",
            versions={EVIL: EVIL},
            run=EVIL,
        )
        for config in "ab"
        for n in range(4)
    ]
    measured = Measurements.of(rows)
    write_report(measured, tmp_path)
    content = (tmp_path / "report.html").read_text()
    page = Page(content)

    assert "script" not in page.tags
    assert len(page.sources) == 1
    assert printable(f"a {EVIL}") in page.text

    print_report(measured)
    for text in (content, capsys.readouterr().out):
        assert "\\x1b[2J" in text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", text)
