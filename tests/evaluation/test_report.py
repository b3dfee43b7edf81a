"""What a report says of given rows, and that it shows foreign text as text."""

import re

import numpy as np
import pytest

from evaluation_rows import SETTINGS, answered_row, failed_row, result_row
from hullft_ops.evaluation.report import cells_of, meanings, print_report, verdicts
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
            config=f"{method} n=3",
            settings={"method": method, "n_select": 3, "refresh": 1, "lr": 1.0},
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


def test_every_configuration_has_its_means(measured: Measurements) -> None:
    none, hullft, knn, sift = cells_of(measured)

    assert none == {"configuration": "no adaptation", SCORE: "3.4500"}
    assert [row["configuration"] for row in (hullft, knn, sift)] == [
        "hullft n=3",
        "knn n=3",
        "sift n=3",
    ]
    assert hullft[SCORE] == f"{measured.after['hullft n=3'].mean():.4f}"
    assert hullft["against none"] == "-17.4%"
    assert (hullft["adapting"], hullft["passes"]) == ("0.500 s", "3.0")


def test_it_names_each_methods_best_setting_and_what_hurts(
    measured: Measurements,
) -> None:
    _, hullft, knn, sift, hurts = verdicts(measured)

    assert hullft.startswith("Best of hullft: hullft n=3, -17.4% [-19.")
    assert hullft.endswith("] against none, better on 30 of 30.")
    assert re.search(r"30 of 30, \+3\.5% \[.*\] against hullft n=3\.$", knn)
    assert "better on 0 of 30" in sift
    assert hurts == "Adapting hurts: sift n=3 scores worse than none."


def test_a_table_names_what_differs_and_says_once_what_its_rows_share() -> None:
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
    assert any(
        line.startswith("Best of hullft: hullft n=3 refresh=2,") for line in lines
    )


def test_it_says_what_to_doubt() -> None:
    rows = rows_of("knn", 1.5, prompts=4)
    rows += rows_of("hullft", 1.4, prompts=3)
    rows.append(result_row("p1", config="sift n=3"))
    rows.append(failed_row("p0", config="sift n=3"))
    lines = verdicts(Measurements.of(rows))

    assert lines[:4] == [
        "Brackets are 95% intervals of a paired bootstrap over the prompts.",
        "Intervals of fewer than 10 prompts say little.",
        "1 prompt left out, on which some configuration has no score.",
        "Left out: sift n=3, which failed on 1 prompt.",
    ]
    assert not any("Left out" in line for line in verdicts(Measurements.of(rows[:7])))


def test_foreign_text_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"method": EVIL, "n_select": 3}
    row = result_row("p", config=f"a {EVIL}", settings=settings)
    print_report(Measurements.of([row]))
    printed = capsys.readouterr().out

    assert "[red]\\x0a\\x1b[2J" in printed
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", printed)
