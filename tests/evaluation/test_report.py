"""What a report says of given rows, and that it shows foreign text as text."""

import re

import numpy as np
import pytest

from evaluation_rows import failed_row, result_row
from hullft_ops.evaluation.report import cells_of, print_report, verdicts
from hullft_ops.evaluation.results import Row
from hullft_ops.evaluation.statistics import Measurements

SCORE = "bits per byte of the prompt"
EVIL = "[d](http://e)[red]\n\x1b[2J\u202e\u2066"


def rows_of(method: str, after: float, *, prompts: int = 30) -> list[Row]:
    """Prompts that take more and more bits; ``after`` is what the first one takes."""
    random = np.random.default_rng(0)
    noise = random.normal(scale=0.01, size=prompts).tolist()
    rows = []

    for number in range(prompts):
        harder = number / 10
        row = result_row(
            f"p{number}",
            settings={"method": method, "n_select": 3, "lr": 1.0},
            before=2.0 + harder,
            after=after + harder + noise[number],
        )
        rows.append(row)

    return rows


@pytest.fixture
def measured() -> Measurements:
    rows = rows_of("knn", 1.5)
    rows += rows_of("hullft", 1.4)
    rows += rows_of("sift", 2.2)
    return Measurements.of(rows)


def test_a_row_for_each_configuration_the_best_first(measured: Measurements) -> None:
    none, hullft, knn, sift = cells_of(measured)

    assert none == {"settings": "no adaptation", SCORE: "3.4500"}
    assert [row["settings"] for row in (hullft, knn, sift)] == ["hullft", "knn", "sift"]
    assert hullft[SCORE] == f"{measured.after[measured.ranked()[0]].mean():.4f}"
    assert (hullft["adapting"], hullft["passes"]) == ("0.500 s", "3.0")
    assert hullft["against none"] == "-17.4%"


def test_it_names_each_methods_best_setting_and_what_hurts(
    measured: Measurements,
) -> None:
    shared, _, hullft, knn, sift, hurts = verdicts(measured)

    assert shared == "Shared settings: n_select=3 lr=1.0."
    assert hullft.startswith("hullft: -17.4% [-19.")
    assert hullft.endswith("] against none, better on 30 of 30.")
    assert re.search(r"30 of 30, \+3\.5% \[.*\] against hullft\.$", knn)
    assert "better on 0 of 30" in sift
    assert hurts == "Adapting hurts: sift scores worse than none."


def test_a_configuration_is_named_by_the_settings_that_vary() -> None:
    reading = {"context": 5, "dtype": "bfloat16"}
    every = [
        {"method": "knn", "n_select": 4} | reading,
        {"method": "hullft", "n_select": 3, "refresh": 2} | reading,
        reading,
    ]
    measured = Measurements.of([result_row("p", settings=each) for each in every])

    assert measured.varying() == ["method", "n_select", "refresh"]
    assert list(measured.names().values()) == [
        "knn n_select=4",
        "hullft n_select=3 refresh=2",
        "shared settings",
    ]
    assert measured.shared() == reading


def test_a_score_of_which_more_is_better() -> None:
    def rows(method: str, after: list[float]) -> list[Row]:
        return [
            result_row(
                f"p{number}",
                settings={"method": method},
                scores={"line": {"before": 20.0, "after": score}},
            )
            for number, score in enumerate(after)
        ]

    measured = Measurements.of(rows("knn", [10.0, 20.0]) + rows("sift", [30.0, 21.0]))
    _, sift, knn = cells_of(measured)

    assert (sift["settings"], knn["settings"]) == ("sift", "knn")
    assert (sift["against none"], knn["against none"]) == ("+5.50", "-5.00")

    lines = verdicts(measured)

    assert any(line.startswith("sift: +5.50 [+1.00, +10.00]") for line in lines)
    assert lines[-1] == "Adapting hurts: knn scores worse than none."


def test_it_says_what_to_doubt() -> None:
    rows = rows_of("knn", 1.5, prompts=4)
    rows += rows_of("hullft", 1.4, prompts=3)
    sift = {"method": "sift", "n_select": 3}
    rows.append(result_row("p1", settings=sift))
    rows.append(failed_row("p0", settings=sift))

    assert verdicts(Measurements.of(rows))[1:5] == [
        "Brackets are 95% intervals of a paired bootstrap over the prompts.",
        "Intervals of fewer than 10 prompts say little.",
        "1 prompt left out, on which some configuration has no score.",
        "Left out, for an error: sift n_select=3.",
    ]


def test_foreign_text_is_shown_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = [result_row("p", settings={"method": name}) for name in (EVIL, "knn")]
    print_report(Measurements.of(rows))
    printed = capsys.readouterr().out

    assert "[red]\\x0a\\x1b[2J" in printed
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", printed)
