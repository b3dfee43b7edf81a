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
from hullft_ops.ttft.errors import InputError

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
    """The mean of ``scores`` relative to that of ``others``, minus 1; float64 ``[prompts]``."""
    return _paired(_ratio, scores, others)


def difference(scores: np.ndarray, others: np.ndarray) -> Interval:
    """The mean of ``scores`` minus that of ``others``; both float64 ``[prompts]``."""
    return _paired(_difference, scores, others)


def _paired(
    statistic: Callable[..., Any], scores: np.ndarray, others: np.ndarray
) -> Interval:
    """Paired: a resample draws prompts, and takes both results on each."""
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


def _ratio(scores: np.ndarray, others: np.ndarray, axis: int = -1) -> Any:
    return scores.mean(axis) / others.mean(axis) - 1


def _difference(scores: np.ndarray, others: np.ndarray, axis: int = -1) -> Any:
    return scores.mean(axis) - others.mean(axis)


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
        failed: configurations that are left out, because they failed on a prompt.
        incomplete: how many prompts are left out because a configuration has no score on them.
    """

    score: str
    rows: dict[str, list[Row]]
    prompts: list[str]
    before: np.ndarray
    after: dict[str, np.ndarray]
    failed: set[str]
    incomplete: int

    @classmethod
    def of(cls, rows: Sequence[Row], score: str | None = None) -> "Measurements":
        """The table of ``score``; None for that of the continuation, or of the prompt if a row has
        no continuation. InputError if the rows are of several runs, or no prompt has all results.
        """
        if score is None:
            names = [row.scores.keys() for row in rows if row.error is None]
            shared = set(METRICS).intersection(*names)
            score = next((name for name in METRICS if name in shared), "prompt")
        runs = {row.run for row in rows}
        if len(runs) != 1:
            raise InputError(f"rows must be of one run, got {len(runs)}")
        failed = {row.config for row in rows if row.error is not None}
        by_prompt: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in rows:
            if row.config not in failed and score in row.scores:
                by_prompt[row.config][row.prompt] = row
        every = list(dict.fromkeys(row.prompt for row in rows))
        prompts = [
            prompt
            for prompt in every
            if all(prompt in rows_of for rows_of in by_prompt.values())
        ]
        if not by_prompt or not prompts:
            raise InputError(
                f"results hold no prompt with a score {score!r} of every configuration"
            )
        table = {
            config: [rows_of[prompt] for prompt in prompts]
            for config, rows_of in by_prompt.items()
        }
        scores = {
            config: [row.scores[score] for row in rows_of]
            for config, rows_of in table.items()
        }
        return cls(
            score=score,
            rows=table,
            prompts=prompts,
            before=np.array([each.before for each in next(iter(scores.values()))]),
            after={
                config: np.array([each.after for each in of_config])
                for config, of_config in scores.items()
            },
            failed=failed,
            incomplete=len(every) - len(prompts),
        )

    @property
    def metric(self) -> Metric:
        """What is compared."""
        return METRICS[self.score]

    def ranked(self) -> list[str]:
        """The configurations, the best first."""
        sign = -1 if self.metric.more_is_better else 1
        return sorted(
            self.after, key=lambda config: sign * float(self.after[config].mean())
        )

    def change(self, scores: np.ndarray, others: np.ndarray) -> Interval:
        """How far ``scores`` are above ``others``: relative, or in points where more is better."""
        compare = difference if self.metric.more_is_better else relative
        return compare(scores, others)

    @property
    def form(self) -> str:
        """How to print a change."""
        return "+.2f" if self.metric.more_is_better else "+.1%"

    def is_better(self, scores: Any, others: Any) -> Any:
        """Whether the scores are better, each."""
        return scores > others if self.metric.more_is_better else scores < others

    def settings(self, config: str) -> dict[str, Any]:
        """The settings of a configuration."""
        return self.rows[config][0].settings

    def varying(self) -> list[str]:
        """The settings that tell the configurations apart.

        These are settings with several values, and of each set of settings that some
        configurations lack, the first.
        """
        every = [self.settings(config) for config in self.rows]
        names = list(dict.fromkeys(name for settings in every for name in settings))
        sets: dict[tuple[bool, ...], list[str]] = defaultdict(list)
        for name in names:
            sets[tuple(name in settings for settings in every)].append(name)
        varying: set[str] = set()
        for have, members in sets.items():
            differing = [
                name
                for name in members
                if len({str(each[name]) for each in every if name in each}) > 1
            ]
            varying.update(differing or (members[:1] if not all(have) else []))
        return [name for name in names if name in varying]

    def shared(self) -> dict[str, Any]:
        """The settings that have one value wherever they matter, and do not tell apart."""
        varying = self.varying()
        every = [self.settings(config) for config in self.rows]
        return {
            name: value
            for settings in every
            for name, value in settings.items()
            if name not in varying
        }

    def names(self) -> dict[str, str]:
        """What to call each configuration, by its key: the settings that tell it apart."""
        varying = self.varying()
        unnamed = f"{varying[0]} off" if varying else "adapted"
        return {
            config: named(self.settings(config), varying) or unnamed
            for config in self.rows
        }

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


def named(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    """Some settings in words: "hullft refresh=2 lr=5e-05"."""
    return " ".join(
        str(value) if isinstance(value, str) else f"{name}={shown(value)}"
        for name in names
        if (value := settings.get(name)) is not None
    )


def shown(value: object) -> str:
    """A value as a user writes it."""
    # A rate of 1 in a file is the rate of 1.0 on the command line.
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
