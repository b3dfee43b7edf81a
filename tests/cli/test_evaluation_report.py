"""``hullft-ops report``: what it says of given rows, and the pages it writes."""

import json
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import bootstrap
from typer.testing import CliRunner

from hullft_ops.cli.app import app
from hullft_ops.ttft.evaluation.config import config_id, expand_grid
from hullft_ops.ttft.evaluation.report import (
    leaders,
    report_sections,
    write_plot,
    write_report,
)
from hullft_ops.ttft.evaluation.results import Row, read_rows
from hullft_ops.ttft.evaluation.statistics import (
    NONE,
    Interval,
    Measurements,
    at_time,
    pareto,
)
from result_rows import result_row

KNN, HULLFT = expand_grid([{"method": ["knn", "hullft"], "n_select": 3}], None)
EVIL = "<script>alert('x')</script> & | a `pipe`\nand a line"


def row(prompt: int, settings: dict[str, object], after: float, seconds: float) -> Row:
    return result_row(
        f"p{prompt}",
        settings=settings,
        domain="ab"[prompt % 2],
        excerpt=EVIL,
        bits_per_byte_before=2.0 + prompt / 10,
        bits_per_byte_after=after,
        seconds={"embed": 0.0, "search": 0.0, "select": 0.0, "finetune": seconds},
        seconds_row=seconds,
    )


@pytest.fixture
def rows() -> list[Row]:
    """kNN takes 2 s to gain 0.5 on every prompt, HullFT 1 s to gain 0.6 give or take noise."""
    noise = np.random.default_rng(0).normal(scale=0.05, size=30)
    rows = [row(i, KNN, 1.5 + i / 10, 2.0) for i in range(30)]
    return rows + [row(i, HULLFT, 1.4 + i / 10 + noise[i], 1.0) for i in range(30)]


def test_a_method_with_texts_in_the_context_is_a_rival_of_its_own(
    rows: list[Row],
) -> None:
    several = [
        {"method": "knn", "n_select": 3, "context": 5},
        {"n_select": 0, "context": [1, 5]},
    ]
    behind, one, five = expand_grid(several, None)
    rows += [row(i, behind, 1.3 + i / 10, 2.5) for i in range(30)]
    rows += [row(i, one, 1.8 + i / 10, 0.1) for i in range(30)]
    rows += [row(i, five, 1.6 + i / 10, 0.3) for i in range(30)]
    measured = Measurements.of(rows)
    knn, hullft = map(config_id, (KNN, HULLFT))
    assert leaders(measured) == [knn, hullft, config_id(behind), "no steps context=5"]
    at = at_time(measured, "no steps", 0.2)
    assert at is not None
    assert at.configs == ("no steps context=1", "no steps context=5")
    assert at.bits.mean() == pytest.approx(1.7 + 2.9 / 2)
    found = at_time(measured, "knn context=5", 3.0)
    assert found is not None
    assert found.configs == (config_id(behind),)


def test_means_and_differences(rows: list[Row]) -> None:
    measured = Measurements.of(rows)
    knn, hullft = map(config_id, (KNN, HULLFT))
    assert measured.configs == [NONE, knn, hullft]
    assert measured.mean_bits(NONE) == pytest.approx(2 + 2.9 / 2)
    assert measured.relative_bits(knn, NONE).value == pytest.approx(-0.5 / 3.45)
    assert measured.prompts_below(knn, NONE) == 30
    assert measured.finetuning_speed(hullft, knn) == Interval(2, 2, 2)


def test_the_interval_is_scipys(rows: list[Row]) -> None:
    measured = Measurements.of(rows)
    knn, hullft = measured.bits[1:]
    found = measured.relative_bits(measured.configs[2], measured.configs[1])
    wanted = bootstrap(
        (hullft, knn),
        lambda own, other, axis: own.mean(axis=axis) / other.mean(axis=axis) - 1,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    # Both draw 10,000 resamples: 3 % of the width is what chance may do.
    assert found.low < found.value < found.high < 0
    assert found.low == pytest.approx(wanted.low, abs=0.05 * (wanted.high - wanted.low))
    assert found.high == pytest.approx(
        wanted.high, abs=0.05 * (wanted.high - wanted.low)
    )


def test_rows_of_several_conditions_are_told(rows: list[Row]) -> None:
    told = "Not all rows are of the same versions, device and threads."
    assert told not in report_sections(Measurements.of(rows), "plot")[-1].paragraphs
    for change in ({"threads": 2}, {"versions": {"torch": "2", "device": "cuda"}}):
        several = [*rows[:-1], replace(rows[-1], **change)]
        assert told in report_sections(Measurements.of(several), "plot")[-1].paragraphs


def test_pairing_makes_it_narrow(rows: list[Row]) -> None:
    measured = Measurements.of(rows)
    found = measured.relative_bits(measured.configs[1], NONE)
    assert found.high - found.low < 0.05
    assert measured.bits[0].std() / measured.bits[0].mean() > 0.2


def test_prompts_that_were_not_finished_are_left_out(rows: list[Row]) -> None:
    measured = Measurements.of(rows[:-1])
    assert len(measured.prompts) == 29
    assert measured.incomplete == 1


def test_a_configuration_that_failed_is_left_out_and_named(rows: list[Row]) -> None:
    failed = replace(
        rows[-1], bits_per_byte_after=None, seconds={}, error="the loss is nan"
    )
    measured = Measurements.of([*rows[:-1], failed])
    assert measured.failed == {config_id(HULLFT): 1}
    assert measured.configs == [NONE, config_id(KNN)]
    overview = report_sections(measured, "x.png")[0]
    assert any(config_id(HULLFT) in line for line in overview.paragraphs)


def test_between_methods_and_at_equal_time(rows: list[Row]) -> None:
    sections = {s.title: s for s in report_sections(Measurements.of(rows), "x.png")}
    ((config, other, bits, verdict, _, speed),) = sections["Between methods"].table
    assert (config, other, verdict) == (config_id(HULLFT), config_id(KNN), "better")
    assert bits.startswith("-3.")
    assert speed == "2.00 x [2.00, 2.00]"
    # No kNN takes 1 s or less, so only kNN has a rival.
    ((config, _, other, _, _, verdict),) = sections["At equal time"].table
    assert (config, other, verdict) == (config_id(KNN), config_id(HULLFT), "worse")


def test_a_report_says_where_adapting_hurts(rows: list[Row], tmp_path: Path) -> None:
    # kNN makes 20 of the 30 prompts worse, and the mean.
    worse = [
        replace(r, bits_per_byte_after=r.bits_per_byte_before + 1) for r in rows[:20]
    ]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(asdict(r)) + "\n" for r in [*worse, *rows[20:]]))
    write_report(file, tmp_path)
    said = f"on average, prompts take more bits with {config_id(KNN)} than without."
    for page in (tmp_path / "report.md", tmp_path / "report.html"):
        assert said in page.read_text(encoding="utf-8")
    sections = {
        s.title: s for s in report_sections(Measurements.of(read_rows(file)), "x.png")
    }
    table = sections["Quality and time"].table
    assert {line[0]: line[3:5] for line in table[1:]} == {
        config_id(HULLFT): ("30 of 30", "0 of 30"),
        config_id(KNN): ("10 of 30", "20 of 30"),
    }


def test_one_prompt_has_no_intervals(rows: list[Row]) -> None:
    sections = {
        s.title: s for s in report_sections(Measurements.of(rows[::30]), "x.png")
    }
    ((_, _, bits, verdict, _, speed),) = sections["Between methods"].table
    knn, hullft = (r.bits_per_byte_after for r in rows[::30])
    assert (bits, speed) == (f"{hullft / knn - 1:+.1%}", "2.00 x")
    assert verdict == "no clear difference"


def test_the_front_is_what_nothing_beats() -> None:
    points = {
        "slow": (3.0, 1.0),
        "quick": (1.0, 2.0),
        "beaten": (2.0, 2.5),
        "same": (1.0, 2.0),
    }
    assert pareto(points) == ["quick", "slow"]


def test_a_method_is_joined_where_it_does_best() -> None:
    points = {
        "quick": (1.0, 2.0),
        "poor": (2.0, 1.9),
        "good": (2.1, 1.0),
        "above": (3.0, 0.95),
        "slow": (3.9, 0.8),
        "beaten": (5.0, 0.9),
    }
    assert pareto(points) == ["quick", "poor", "good", "above", "slow"]
    grid = expand_grid([{"method": "knn", "n_select": list(range(1, 7))}], None)
    names = dict(zip(points, grid, strict=True))
    rows = [
        row(0, names[name], bits, seconds) for name, (seconds, bits) in points.items()
    ]
    measured = Measurements.of(rows)

    def at(seconds: float) -> list[str]:
        found = at_time(measured, "knn", seconds)
        return [
            name for name in points if found and config_id(names[name]) in found.configs
        ]

    # The lines that join "quick", "good" and "slow" are below all others.
    assert [at(s) for s in (0.9, 1.0, 2.0, 2.1)] == [
        [],
        ["quick"],
        ["quick", "good"],
        ["good"],
    ]
    assert [at(s) for s in (3.0, 3.9, 9.0)] == [["good", "slow"], ["slow"], ["slow"]]


def test_quality_at_a_time_lies_between_two_configurations(rows: list[Row]) -> None:
    quick, slow = expand_grid([{"method": "knn", "n_select": [1, 8]}], None)
    beaten = expand_grid([{"method": "knn", "n_select": 9}], None)[0]
    rows += [row(i, quick, 1.8 + i / 10, 1.0) for i in range(30)]
    rows += [row(i, slow, 1.4 + i / 10, 4.0) for i in range(30)]
    rows += [row(i, beaten, 1.7 + i / 10, 3.0) for i in range(30)]
    measured = Measurements.of(rows)
    assert at_time(measured, "knn", 0.9) is None
    between = at_time(measured, "knn", 2.5)
    assert between.configs == (config_id(KNN), config_id(slow))
    assert between.seconds == 2.5
    np.testing.assert_allclose(between.bits, 1.475 + np.arange(30) / 10)
    for seconds, configs, taken in (
        (2.0, (config_id(KNN),), 2.0),
        (9.0, (config_id(slow),), 4.0),
    ):
        found = at_time(measured, "knn", seconds)
        assert (found.configs, found.seconds) == (configs, taken)
        np.testing.assert_array_equal(found.bits, measured.bits_of(configs[0]))
    sections = {s.title: s for s in report_sections(measured, "x.png")}
    table = sections["At equal time"].table
    assert (f"{config_id(quick)}", "1.000 s") in [line[2:4] for line in table]


class Page(HTMLParser):
    """Tags, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [
            value or "" for name, value in attrs if name in ("src", "href")
        ]
        if tag == "td":
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


@pytest.fixture
def results(rows: list[Row], tmp_path: Path) -> Path:
    file = tmp_path / "results.jsonl"
    file.write_text(
        "".join(json.dumps(asdict(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return file


def test_the_html_page_is_whole_and_escapes_the_corpus(
    results: Path, tmp_path: Path
) -> None:
    write_report(results, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert EVIL in page.cells
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"]


def test_the_command_writes_three_files_and_the_same_again(
    results: Path, tmp_path: Path
) -> None:
    arguments = ["report", str(results), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["report.html", "report.md", "report.png"]
    text = files[1].read_text(encoding="utf-8")
    assert "![Quality against time](report.png)" in text
    assert config_id(HULLFT) in text
    before = [file.read_bytes() for file in files]
    CliRunner().invoke(app, arguments)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("seconds", [(1.96, 1.98, 2.0), (0.001, 1.0, 2.0)])
def test_the_plot_cuts_no_marker(seconds: tuple[float, ...], tmp_path: Path) -> None:
    grid = expand_grid([{"method": "knn", "n_select": [1, 2, 3]}], None)
    rows = [row(0, grid[i], 1.9 - i / 5, seconds[i]) for i in range(3)]
    write_plot(Measurements.of(rows), tmp_path / "plot.png")
    colours = matplotlib.image.imread(tmp_path / "plot.png")[..., :3]
    first = np.array(matplotlib.colors.to_rgb("C0"))
    markers, count = ndimage.label(np.abs(colours - first).max(-1) < 0.01)
    sizes = np.bincount(markers.flat)[1:]
    # Three configurations and the legend.
    assert count == 4
    assert sizes.min() > 0.95 * sizes.max() > 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("", "results must be of one run, got 0"),
        ("{}\n", "line 1: lacks 'run'"),
        ("nonsense\n", "line 1: not a row"),
    ],
)
def test_what_is_no_results_file_is_refused(
    content: str | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "results.jsonl"
    if content is not None:
        file.write_text(content)
    result = CliRunner().invoke(
        app, ["report", str(file), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
