"""What a report says of given rows, and that it shows foreign text as text."""

import re

import numpy as np
import pytest

from evaluation_rows import failed_row, result_row
from hullft_ops.evaluation.report import NONE, cells_of, notes, print_report
from hullft_ops.evaluation.results import Row
from hullft_ops.evaluation.statistics import Measurements

SCORE = "bits per byte of the prompt"
NOISE = np.random.default_rng(0).normal(scale=0.01, size=30)
EVIL = "[d](http://e)[red]\n\x1b[2J\u202e\u2066"


def rows_of(method: str, after: float, *, prompts: int = 30) -> list[Row]:
    """Prompts that take more and more bits; ``after`` is what the first one takes."""
    noise = NOISE.tolist()
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

    assert none == {"settings": NONE, SCORE: "3.4500"}
    assert [row["settings"] for row in (hullft, knn, sift)] == ["hullft", "knn", "sift"]
    assert hullft[SCORE] == f"{1.4 + 1.45 + NOISE.mean():.4f}"
    assert (hullft["adapting"], hullft["passes"]) == ("0.500 s", "3.0")
    assert re.fullmatch(r"-17\.4% \[-19\..%, -1.\..%\]", hullft["against none"])
    assert hullft["against the best"] == "+0.0% [+0.0%, +0.0%]"
    assert re.fullmatch(r"\+3\.5% \[.*\]", knn["against the best"])


def test_a_configuration_is_named_by_the_settings_that_vary() -> None:
    reading = {"context": 5, "dtype": "bfloat16"}
    every = [
        {"method": "knn", "n_select": 4} | reading,
        {"method": "hullft", "n_select": 3, "refresh": 2} | reading,
        reading,
    ]
    measured = Measurements.of([result_row("p", settings=each) for each in every])

    assert list(measured.names().values()) == [
        "knn n_select=4",
        "hullft n_select=3 refresh=2",
        "shared settings",
    ]
    assert measured.shared() == ["context=5", "bfloat16"]


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
    assert sift["against none"] == "+5.50 [+1.00, +10.00]"
    assert knn["against the best"] == "-10.50 [-20.00, -1.00]"


def test_it_says_what_to_doubt() -> None:
    rows = rows_of("knn", 1.5, prompts=4)
    rows += rows_of("hullft", 1.4, prompts=3)
    sift = {"method": "sift", "n_select": 3}
    rows.append(result_row("p1", settings=sift))
    rows.append(failed_row("p0", settings=sift))

    assert notes(Measurements.of(rows)) == [
        "Shared settings: n_select=3 lr=1.0.",
        "Brackets are 95% intervals of a paired bootstrap over the prompts; of fewer than 10 they "
        "say little.",
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
