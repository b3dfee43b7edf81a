"""Rows of results as matrices, and the certainty of differences between configurations."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
from scipy import stats

from hullft_ops.evaluation.results import Row
from hullft_ops.evaluation.scores import METRICS, Metric
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


def relative(scores: np.ndarray, others: np.ndarray, axis: int = -1) -> Any:
    """The mean of ``scores`` by the mean of ``others``, minus 1."""
    return scores.mean(axis) / others.mean(axis) - 1


def difference(scores: np.ndarray, others: np.ndarray, axis: int = -1) -> Any:
    """The mean of ``scores`` minus the mean of ``others``."""
    return scores.mean(axis) - others.mean(axis)


def paired(
    statistic: Callable[..., Any], scores: np.ndarray, others: np.ndarray
) -> Interval:
    """The statistic of float64 ``[prompts]``. A resample draws prompts, and takes both results on
    each."""
    if len(scores) < 2:
        return Interval(statistic(scores, others), nan, nan)
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
    return Interval(statistic(scores, others), interval.low, interval.high)


@dataclass(frozen=True)
class Measurements:
    """A complete table of one score: every configuration has a result on every prompt.

    Attributes:
        score: the name of the score.
        rows: for each configuration, by the key of its settings, a row per prompt, in the order
            of ``prompts``.
        prompts: the prompts' ids.
        before: float64 ``[prompts]``, the score without adaptation.
        after: for each configuration float64 ``[prompts]``, the score.
        failed: for each configuration that is left out, because it failed on a prompt, its
            settings, by their key.
        incomplete: how many prompts are left out because a configuration has no score on them.
    """

    score: str
    rows: dict[str, list[Row]]
    prompts: list[str]
    before: np.ndarray
    after: dict[str, np.ndarray]
    failed: dict[str, dict[str, Any]]
    incomplete: int

    @classmethod
    def of(cls, rows: Sequence[Row], score: str | None = None) -> "Measurements":
        """The table of ``score``; None for the continuation's, or the prompt's if a row has
        no continuation. InputError if the rows are of several runs, or no prompt has all results.
        """
        if score is None:
            names = [row.scores.keys() for row in rows if row.error is None]
            shared = set(METRICS).intersection(*names)
            score = next((name for name in METRICS if name in shared), "prompt")
        runs = {row.run for row in rows}
        if len(runs) != 1:
            raise InputError(f"rows must be of one run, got {len(runs)}")
        failed = {row.config: row.settings for row in rows if row.error is not None}
        rows_of: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in rows:
            if row.config not in failed and score in row.scores:
                rows_of[row.config][row.prompt] = row
        every = list(dict.fromkeys(row.prompt for row in rows))
        prompts = [
            prompt
            for prompt in every
            if all(prompt in of_config for of_config in rows_of.values())
        ]
        if not rows_of or not prompts:
            raise InputError(
                f"results hold no prompt with a score {score!r} of every configuration"
            )
        table = {
            config: [of_config[prompt] for prompt in prompts]
            for config, of_config in rows_of.items()
        }
        [first, *_] = table.values()
        return cls(
            score=score,
            rows=table,
            prompts=prompts,
            before=np.array([row.scores[score].before for row in first]),
            after={
                config: np.array([row.scores[score].after for row in of_config])
                for config, of_config in table.items()
            },
            failed=failed,
            incomplete=len(every) - len(prompts),
        )

    @property
    def metric(self) -> Metric:
        """What is compared."""
        return METRICS[self.score]

    def gains(self, config: str) -> np.ndarray:
        """How much better each prompt's score is than without adaptation."""
        change: np.ndarray = self.after[config] - self.before
        return change if self.metric.more_is_better else -change

    def ranked(self) -> list[str]:
        """The configurations, the best first."""
        return sorted(self.after, key=lambda config: float(-self.gains(config).mean()))

    def change(self, scores: np.ndarray, others: np.ndarray) -> str:
        """How far ``scores`` are above ``others``: relative, or in points where more is better."""
        if self.metric.more_is_better:
            return paired(difference, scores, others).text("+.2f")
        return paired(relative, scores, others).text("+.1%")

    def best_of_each_kind(self) -> list[str]:
        """Of the configurations with the same techniques and methods the best, the best first."""
        best: dict[Any, str] = {}
        for config in self.ranked():
            # Numbers are tuned; which settings there are, and words, are what is compared.
            kind = frozenset(
                (name, value if isinstance(value, str) else None)
                for name, value in self.settings(config).items()
            )
            best.setdefault(kind, config)
        return list(best.values())

    def settings(self, config: str) -> dict[str, Any]:
        """The settings of a configuration."""
        return self.rows[config][0].settings

    def varying(self) -> list[str]:
        """The settings that are not the same in all configurations."""
        every = [self.settings(config) for config in self.rows]
        names = dict.fromkeys(name for settings in every for name in settings)
        return [
            name for name in names if len({str(each.get(name)) for each in every}) > 1
        ]

    def shared(self) -> dict[str, Any]:
        """The settings that all configurations have."""
        [first, *_] = self.rows
        varying = self.varying()
        return {
            name: value
            for name, value in self.settings(first).items()
            if name not in varying
        }

    def names(self) -> dict[str, str]:
        """What to call each configuration: the settings that vary, in words."""
        varying = self.varying()
        return {
            config: named(self.settings(config), varying) or "shared settings"
            for config in self.rows
        }


def named(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    """Some settings in words: "hullft refresh=2 lr=5e-05"."""
    return " ".join(
        str(value) if isinstance(value, str) else f"{name}={value}"
        for name in names
        if (value := settings.get(name)) is not None
    )
