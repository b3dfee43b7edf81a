"""Rows of results as matrices, and the certainty of differences between configurations."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from hullft_ops.evaluation.experiment import NO_STEPS, compared_settings
from hullft_ops.evaluation.results import Row, Score
from hullft_ops.evaluation.scores import TITLES
from hullft_ops.ttft.errors import InputError

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap interval, whose bounds are NaN for one prompt."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        bounds = "" if isnan(self.low) else f" [{self.low:+.1%}, {self.high:+.1%}]"
        return f"{self.value:+.1%}{bounds}"


def relative(scores: np.ndarray, others: np.ndarray) -> Interval:
    """The mean of ``scores`` relative to that of ``others``, minus 1; both float64 ``[prompts]``.

    Paired: a resample draws prompts, and takes both results on each.
    """
    if len(scores) < 2:
        return Interval(_change(scores, others), nan, nan)
    interval = stats.bootstrap(
        (scores, others),
        _change,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(_change(scores, others), interval.low, interval.high)


def _change(scores: np.ndarray, others: np.ndarray, axis: int = -1) -> Any:
    return scores.mean(axis) / others.mean(axis) - 1


@dataclass(frozen=True)
class Measurements:
    """A complete table of one score: every configuration has a result on every prompt.

    Attributes:
        score: the name of the score.
        rows: for each configuration, by its label, a row per prompt, in the order of ``prompts``.
        prompts: the prompts' ids.
        before: float64 ``[prompts]``, the score without adaptation.
        after: for each configuration float64 ``[prompts]``, the score.
        failed: configurations that are left out, and the number of prompts they failed on.
        incomplete: how many prompts are left out because a configuration has no score on them.
    """

    score: str
    rows: dict[str, list[Row]]
    prompts: list[str]
    before: np.ndarray
    after: dict[str, np.ndarray]
    failed: Counter[str]
    incomplete: int

    @classmethod
    def of(cls, rows: Sequence[Row], score: str | None = None) -> "Measurements":
        """The table of ``score``; None for that of the continuation, or of the prompt if a row has
        no continuation. InputError if the rows are of several runs, or no prompt has all results.
        """
        score = score or next(iter(_shared_scores(rows)), "prompt")
        runs = {row.run for row in rows}
        if len(runs) != 1:
            raise InputError(f"rows must be of one run, got {len(runs)}")
        failed = Counter(row.config for row in rows if row.error is not None)
        by_key = {
            row.key: row
            for row in rows
            if row.config not in failed and score in row.scores
        }
        configs = list(dict.fromkeys(config for _, config in by_key))
        every = list(dict.fromkeys(row.prompt for row in rows))
        prompts = [
            prompt
            for prompt in every
            if all((prompt, config) in by_key for config in configs)
        ]
        if not configs or not prompts:
            raise InputError(
                f"results hold no prompt with a score {score!r} of every configuration"
            )
        table = {
            config: [by_key[prompt, config] for prompt in prompts] for config in configs
        }
        first = table[configs[0]]
        return cls(
            score=score,
            rows=table,
            prompts=prompts,
            before=np.array([row.scores[score].before for row in first]),
            after={
                config: np.array([row.scores[score].after for row in table[config]])
                for config in configs
            },
            failed=failed,
            incomplete=len(every) - len(prompts),
        )

    @property
    def other_scores(self) -> list[str]:
        """The names of the scores that every row has beside the one that is compared."""
        rows = [row for rows in self.rows.values() for row in rows]
        return [name for name in _shared_scores(rows) if name != self.score]

    def mean_score(self, config: str, name: str) -> Score:
        """The mean of a score over the prompts."""
        scores = [row.scores[name] for row in self.rows[config]]
        return Score(
            before=fmean(score.before for score in scores),
            after=fmean(score.after for score in scores),
        )

    def ranked(self) -> list[str]:
        """The configurations, the best first."""
        return sorted(self.after, key=lambda config: float(self.after[config].mean()))

    def shared(self) -> list[str]:
        """What the labels of all configurations with steps say, beside method and steps."""
        with_steps = [label.split(" ") for label in self.rows if _has_steps(label)]
        if not with_steps:
            return []
        first = with_steps[0]
        return [part for part in first[2:] if all(part in each for each in with_steps)]

    def names(self) -> dict[str, str]:
        """For each configuration, by its label, the label without what is `shared`."""
        shared = self.shared()
        names = {}
        for label in self.rows:
            parts = [part for part in label.split(" ") if part not in shared]
            names[label] = " ".join(parts) if _has_steps(label) else label
        return names

    def best_of_each_method(self) -> dict[str, str]:
        """For each of `compared_settings`, its best configuration, the best first."""
        best: dict[str, str] = {}
        for config in self.ranked():
            best.setdefault(compared_settings(self.rows[config][0].settings), config)
        return best


def _has_steps(label: str) -> bool:
    return not label.startswith(NO_STEPS)


def _shared_scores(rows: Sequence[Row]) -> list[str]:
    """The names of the scores that every row without an error has, the one to compare first."""
    names = [set(row.scores) for row in rows if row.error is None]
    shared = set.intersection(*names) if names else set()
    return [name for name in TITLES if name in shared]
