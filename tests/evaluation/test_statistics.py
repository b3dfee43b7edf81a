"""Rows as matrices, and intervals against bootstraps made by hand."""

import numpy as np
import pytest

from evaluation_rows import answered_row, failed_row, result_row
from hullft_ops.evaluation.results import Row
from hullft_ops.evaluation.statistics import Measurements, relative
from hullft_ops.ttft.validation import InputError

PROMPTS = 30
A, B = ('{"method": "a"}', '{"method": "b"}')


def rows_of(method: str, bits: np.ndarray) -> list[Row]:
    rows = []
    for number, value in enumerate(bits.tolist()):
        row = result_row(
            f"p{number}",
            settings={"method": method},
            after=value,
        )
        rows.append(row)

    return rows


@pytest.fixture
def bits() -> tuple[np.ndarray, np.ndarray]:
    """One in 20 fewer bits than the other on average, on prompts that differ far more."""
    random = np.random.default_rng(0)
    others = random.uniform(0.5, 3.0, PROMPTS)
    return 0.95 * others + random.normal(scale=0.02, size=PROMPTS), others


def test_an_interval_is_that_of_a_paired_bootstrap(
    bits: tuple[np.ndarray, np.ndarray],
) -> None:
    ours, others = bits
    interval = relative(ours, others)

    assert interval.value == pytest.approx(ours.mean() / others.mean() - 1)

    drawn = np.random.default_rng(1).integers(PROMPTS, size=(20_000, PROMPTS))
    changes = ours[drawn].mean(1) / others[drawn].mean(1) - 1
    low, high = np.quantile(changes, [0.025, 0.975])

    # Two bootstraps of one sample differ by some hundredths of the interval's width.
    assert interval.low == pytest.approx(low, abs=0.05 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.05 * (high - low))
    assert relative(ours, others) == interval


def test_one_prompt_has_no_interval() -> None:
    interval = relative(np.array([1.0]), np.array([2.0]))
    assert interval.text("+.1%") == "-50.0%"


def test_every_configuration_is_there_on_every_prompt() -> None:
    five = rows_of("a", np.arange(1.0, 6.0))
    four = rows_of("b", np.arange(2.0, 6.0))
    rows = five + four
    measured = Measurements.of(rows[::-1])

    assert [row.prompt for row in measured.rows[A]] == ["p3", "p2", "p1", "p0"]
    assert measured.incomplete == 1
    assert measured.after[A].tolist() == [4.0, 3.0, 2.0, 1.0]
    assert measured.after[B].tolist() == [5.0, 4.0, 3.0, 2.0]
    assert measured.before.tolist() == [2.0] * 4
    assert list(measured.after) == [A, B]


def test_configurations_are_compared_by_the_continuation_where_all_rows_have_one() -> (
    None
):
    rows = [answered_row(prompt, answer=2.5) for prompt in ("p", "q")]
    measured = Measurements.of(rows)

    assert measured.score == "continuation"
    assert measured.before.tolist() == [3.0, 3.0]
    assert Measurements.of(rows, "prompt").before.tolist() == [2.0, 2.0]

    rows.append(result_row("r"))

    assert Measurements.of(rows).score == "prompt"


def test_a_configuration_that_failed_on_a_prompt_is_left_out() -> None:
    rows = [result_row(prompt) for prompt in ("p", "q")]
    sift = {"method": "sift", "noise": 0.1}
    rows += [result_row("p", settings=sift), failed_row("q", settings=sift)]
    measured = Measurements.of(rows)

    assert measured.failed == ["sift noise=0.1"]
    assert len(measured.rows) == 1
    assert measured.incomplete == 0


def test_rows_of_two_runs_and_rows_that_share_no_prompt() -> None:
    two_runs = [result_row("p"), result_row("q", run="other")]

    with pytest.raises(InputError, match="rows must be of one run, got 2"):
        Measurements.of(two_runs)

    with pytest.raises(InputError, match="rows must be of one run, got 0"):
        Measurements.of([])

    rows = [
        result_row("p", settings={"method": "a"}),
        result_row("q", settings={"method": "b"}),
    ]

    with pytest.raises(InputError, match="no prompt with a score 'prompt' of every"):
        Measurements.of(rows)
