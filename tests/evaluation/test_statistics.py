"""Rows as matrices, and intervals against bootstraps made by hand."""

import numpy as np
import pytest

from evaluation_rows import answered_row, result_row
from hullft_ops.evaluation.results import Row
from hullft_ops.evaluation.statistics import Measurements, paired, relative
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
    interval = paired(relative, ours, others)

    assert interval.value == pytest.approx(ours.mean() / others.mean() - 1)

    drawn = np.random.default_rng(1).integers(PROMPTS, size=(20_000, PROMPTS))
    changes = ours[drawn].mean(1) / others[drawn].mean(1) - 1
    low, high = np.quantile(changes, [0.025, 0.975])

    # Two bootstraps of one sample differ by some hundredths of the interval's width.
    assert interval.low == pytest.approx(low, abs=0.05 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.05 * (high - low))
    assert paired(relative, ours, others) == interval


def test_one_prompt_has_no_interval() -> None:
    interval = paired(relative, np.array([1.0]), np.array([2.0]))
    assert interval.text("+.1%") == "-50.0%"


def test_every_configuration_is_there_on_every_prompt() -> None:
    five = rows_of("a", np.arange(1.0, 6.0))
    four = rows_of("b", np.arange(2.0, 6.0))
    rows = five + four
    measured = Measurements.of(rows[::-1])

    assert measured.prompts == ["p3", "p2", "p1", "p0"]
    assert measured.incomplete == 1
    assert measured.after[A].tolist() == [4.0, 3.0, 2.0, 1.0]
    assert measured.after[B].tolist() == [5.0, 4.0, 3.0, 2.0]
    assert measured.before.tolist() == [2.0] * 4
    assert measured.ranked() == [A, B]


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


def test_the_best_of_each_kind() -> None:
    every = [
        {"method": "hullft", "n_select": 5},
        {"method": "knn", "n_select": 5},
        {"method": "knn", "n_select": 5, "context": 2},
        {"method": "knn", "n_select": 5, "adapter": "a"},
        {"context": 2},
        {"adapter": "a"},
    ]
    rows = []
    for number, settings in enumerate(every):
        for lr, bits in {1: 1.5, 2: 1.2, 3: 1.9}.items():
            rows.append(
                result_row("p", settings=settings | {"lr": lr}, after=bits + number)
            )

    measured = Measurements.of(rows)
    best = [measured.settings(config) for config in measured.best_of_each_kind()]

    assert best == [settings | {"lr": 2} for settings in every]


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
