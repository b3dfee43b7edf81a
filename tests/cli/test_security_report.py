"""Results files from anywhere: a report in which all text is text, or an error of one line."""

import copy
import json
import random
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hullft_ops.cli.app import app
from hullft_ops.ttft.evaluation.config import ConfigError
from hullft_ops.ttft.evaluation.report import (
    example_section,
    html,
    markdown,
    report_sections,
    write_report,
)
from hullft_ops.ttft.evaluation.results import read_rows
from hullft_ops.ttft.evaluation.statistics import Measurements
from result_rows import result_row

EVIL = "</td></table><script>alert(\"x\")</script><img src='y' onerror=z>{{ 7 * 7 }}&amp;|$\\frac["
TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "p",
    "img",
    "div",
    "table",
}
TAGS |= {"thead", "tbody", "tr", "th", "td", "bdi"}


def row(prompt: int, method: str) -> dict[str, Any]:
    return asdict(
        result_row(
            f"{EVIL}{prompt}",
            run=EVIL,
            settings={
                "method": f"{method} {EVIL}",
                "n_select": 3,
                "refresh": 1,
                "lr": 0.1,
            },
            domain=f"{EVIL}{prompt % 2}",
            excerpt=EVIL,
            bits_per_byte_before=2.0 + prompt,
            bits_per_byte_after=1.5 + prompt,
            versions={EVIL: EVIL},
        )
    )


def rows() -> list[dict[str, Any]]:
    return [row(prompt, method) for prompt in range(4) for method in ("knn", "hullft")]


def write(file: Path, content: list[Any]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in content))
    return file


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_field_of_a_row_is_text_in_the_report(tmp_path: Path) -> None:
    results = write(tmp_path / "rows.jsonl", rows())
    write_report(results, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.tags <= TAGS
    assert "onerror" not in page.attributes
    # As text it is there, from domain, configuration, run, version and excerpt.
    assert page.text.count(EVIL) > 8
    assert "<script" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


HOSTILE = [
    None,
    True,
    -1,
    10**400,
    1e300,
    float("nan"),
    float("inf"),
    "x",
    EVIL,
    [],
    {},
    [[1]],
]


def test_forged_rows_are_reported_or_refused(tmp_path: Path) -> None:
    """Any other error than ConfigError ends the test."""
    generator, refused = random.Random(0), 0
    for number in range(120):
        content = rows()
        for _ in range(generator.randint(1, 2)):
            line = generator.choice(content)
            inner = line[generator.choice(["settings", "seconds", "versions"])]
            place = generator.choice([line, line, line, inner])
            if place:
                place[generator.choice(list(place))] = copy.deepcopy(
                    generator.choice(HOSTILE)
                )
            if not all(
                isinstance(line[name], dict) for name in ("settings", "seconds")
            ):
                break
        file = write(tmp_path / f"{number}.jsonl", content)
        try:
            measured = Measurements.of(read_rows(file))
            sections = [*report_sections(measured, "p.png"), example_section(measured)]
        except ConfigError:
            refused += 1
            continue
        page = Page(html(sections, {"p.png": b""}))
        assert page.tags <= TAGS
        assert "<script" not in markdown(sections)
    assert 50 < refused < 120


@pytest.mark.parametrize("length", [True, 16.0, "16", [16], {}])
def test_a_length_of_texts_that_is_no_integer_is_refused(
    tmp_path: Path, length: object
) -> None:
    content = rows()
    content[0]["settings"]["max_length"] = 16
    content[1]["settings"]["max_length"] = length
    with pytest.raises(
        ConfigError, match="line 2: max_length must be an integer, got "
    ):
        read_rows(write(tmp_path / "rows.jsonl", content))


@pytest.mark.parametrize(
    "name", ["bits_per_byte_before", "bits_per_byte_after", "residual"]
)
def test_a_negative_number_is_refused(tmp_path: Path, name: str) -> None:
    content = rows()
    content[1][name] = -0.5
    with pytest.raises(
        ConfigError, match=rf"line 2: {name} must be .*0\.\.1e100, got -0\.5"
    ):
        read_rows(write(tmp_path / "rows.jsonl", content))


@pytest.mark.parametrize("place", ["domain", "excerpt", "settings", "versions"])
def test_half_a_surrogate_pair_ends_with_one_line(tmp_path: Path, place: str) -> None:
    content = rows()
    content[1][place] = (
        "\ud800" if isinstance(content[1][place], str) else {"method": "\ud800"}
    )
    file = write(tmp_path / "rows.jsonl", content)
    result = CliRunner().invoke(
        app, ["report", str(file), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 2, result.exception
    (said,) = result.stderr.splitlines()
    assert "line 2: not a row: 'utf-8' codec can't encode character '\\ud800'" in said


TURNED = "\u202edesrever\u2069\u2067"


class Isolated(HTMLParser):
    """Text that a mark of direction could reach, and how often one comes inside of <bdi>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.outside, self.turned, self._depth = "", 0, 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._depth += tag == "bdi"

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "bdi"

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.turned += "\u202e" in data
        else:
            self.outside += data


def test_a_mark_of_direction_turns_nothing_but_its_own_name(tmp_path: Path) -> None:
    content = [
        line
        | {
            "run": TURNED,
            "domain": TURNED,
            "excerpt": TURNED,
            "versions": {TURNED: TURNED},
        }
        for line in rows()
    ]
    for line in content:
        line["settings"]["method"] += TURNED
    write_report(write(tmp_path / "rows.jsonl", content), tmp_path / "out")
    page = Isolated((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert not set(page.outside) & set("\u202e\u2066\u2067\u2068\u2069")
    # The overview's paragraph and the conditions' among them.
    assert page.turned > 12
    sentences = (
        (tmp_path / "out" / "report.md").read_text(encoding="utf-8").splitlines()
    )
    (overview,) = (line for line in sentences if "held-out prompts (" in line)
    assert "(\u2068\u202edesrever\u2069 4), " in overview


def test_a_row_without_a_result_says_why(tmp_path: Path) -> None:
    content = rows()
    content[1]["bits_per_byte_after"] = None
    content[1]["error"] = None
    with pytest.raises(
        ConfigError, match="line 2: must have bits_per_byte_after or an error"
    ):
        read_rows(write(tmp_path / "rows.jsonl", content))


@pytest.mark.parametrize(
    "line",
    ["[" * 10**5, "9" * 5000, '{"a":' * 10**5, "null", '"x"', "\0", '{"run": 1}'],
)
def test_lines_that_are_no_rows_end_with_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 2
    (said,) = result.stderr.splitlines()
    assert said.startswith("hullft-ops report: results")
    assert "line 1" in said
