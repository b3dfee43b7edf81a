"""Rows of results as matrices, and the certainty of differences between configurations."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from typing import Any

import numpy as np
from scipy import stats

from hullft_ops.evaluation.results import Row
from hullft_ops.evaluation.scores import METRICS
from hullft_ops.ttft.validation import InputError

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap interval, whose bounds are NaN for one prompt."""

    value: float
    low: float
    high: float

    def text(self, form: str) -> str:
        """The estimate, and its bounds in brackets."""
        bounds = "" if isnan(self.low) else f" [{self.low:{form}}, {self.high:{form}}]"
        return f"{self.value:{form}}{bounds}"


def relative(scores: np.ndarray, others: np.ndarray) -> Interval:
    """The mean of ``scores`` by the mean of ``others``, minus 1. Both are float64 ``[prompts]``."""
    return _paired(
        lambda ours, theirs, axis=-1: ours.mean(axis) / theirs.mean(axis) - 1,
        scores,
        others,
    )


def difference(scores: np.ndarray, others: np.ndarray) -> Interval:
    """The mean of ``scores`` minus the mean of ``others``. Both are float64 ``[prompts]``."""
    return _paired(
        lambda ours, theirs, axis=-1: ours.mean(axis) - theirs.mean(axis),
        scores,
        others,
    )


def _paired(
    statistic: Callable[..., Any], scores: np.ndarray, others: np.ndarray
) -> Interval:
    """A resample draws prompts, and takes both scores on each."""
    value = statistic(scores, others)
    if len(scores) < 2:
        return Interval(value, nan, nan)
    interval = stats.bootstrap(
        (scores, others),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(value, interval.low, interval.high)


@dataclass(frozen=True)
class Measurements:
    """A complete table of one score: every configuration has a result on every prompt.

    Attributes:
        score: the name of the score.
        rows: for each configuration, by the key of its settings, a row per prompt, in one order.
        failed: in words, each configuration that is left out, because it failed on a prompt.
        incomplete: how many prompts are left out because a configuration has no score on them.
    """

    score: str
    rows: dict[str, list[Row]]
    failed: list[str]
    incomplete: int

    @classmethod
    def of(cls, rows: Sequence[Row], score: str | None = None) -> "Measurements":
        """The table of ``score``; None for the continuation's, or the prompt's if a row has
        no continuation. InputError if the rows are of several runs, or no prompt has all results.
        """
        failed = {row.config: row.settings for row in rows if row.error is not None}
        measured = [row for row in rows if row.config not in failed]
        if score is None:
            shared = set(METRICS).intersection(*(row.scores for row in measured))
            score = next((name for name in METRICS if name in shared), "prompt")
        runs = {row.run for row in rows}
        if len(runs) != 1:
            raise InputError(f"rows must be of one run, got {len(runs)}")
        configs: dict[str, list[Row]] = {}
        rows_of: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in measured:
            if score in row.scores:
                configs[row.config] = []
                rows_of[row.prompt][row.config] = row
        complete = [each for each in rows_of.values() if len(each) == len(configs)]
        if not complete:
            raise InputError(
                f"results hold no prompt with a score {score!r} of every configuration"
            )
        return cls(
            score=score,
            rows={config: [each[config] for each in complete] for config in configs},
            failed=[" ".join(in_words(settings)) for settings in failed.values()],
            incomplete=len({row.prompt for row in rows}) - len(complete),
        )

    @cached_property
    def before(self) -> np.ndarray:
        """float64 ``[prompts]``, the score without adaptation."""
        [rows, *_] = self.rows.values()
        return np.array([row.scores[self.score].before for row in rows])

    @cached_property
    def after(self) -> dict[str, np.ndarray]:
        """For each configuration float64 ``[prompts]``, the score. The best comes first."""
        after = {
            config: np.array([row.scores[self.score].after for row in rows])
            for config, rows in self.rows.items()
        }
        ranked = sorted(
            after,
            key=lambda config: float(after[config].mean()),
            reverse=METRICS[self.score].more_is_better,
        )
        return {config: after[config] for config in ranked}

    def change(self, scores: np.ndarray, others: np.ndarray) -> str:
        """How far ``scores`` are above ``others``: relative, or in points where more is better."""
        if METRICS[self.score].more_is_better:
            return difference(scores, others).text("+.2f")
        return relative(scores, others).text("+.1%")

    def names(self) -> dict[str, str]:
        """What to call each configuration: the settings that are not shared, in words."""
        shared = self.shared()
        return {
            config: " ".join(
                words for words in in_words(rows[0].settings) if words not in shared
            )
            or "shared settings"
            for config, rows in self.rows.items()
        }

    def shared(self) -> list[str]:
        """The settings that all configurations have, in words."""
        [first, *others] = (in_words(rows[0].settings) for rows in self.rows.values())
        return [words for words in first if all(words in other for other in others)]


def in_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings in words: "hullft", "refresh=2"."""
    return [
        str(value) if isinstance(value, str) else f"{name}={value}"
        for name, value in settings.items()
        if value is not None
    ]
