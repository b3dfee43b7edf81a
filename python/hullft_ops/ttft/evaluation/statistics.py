"""Rows of results as matrices, and the certainty of differences between configurations."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import isnan
from statistics import fmean
from typing import Any

import numpy as np

from hullft_ops.ttft.evaluation.config import ConfigError, family
from hullft_ops.ttft.evaluation.results import MERGE, STAGES, Row

CONFIDENCE = 0.95
RESAMPLES = 10_000
NONE = "no adaptation"


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap interval; the bounds are NaN for one prompt.

    It is formatted as a number, with a unit for the estimate alone: ``f"{speed:.2f x}"``.
    """

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        number, space, unit = form.partition(" ")
        value = f"{self.value:{number}}{space}{unit}"
        bounds = f" [{self.low:{number}}, {self.high:{number}}]"
        return value if isnan(self.low) else value + bounds

    @property
    def verdict(self) -> str:
        """What a change of bits per byte means."""
        if self.low > 0:
            return "worse"
        return "better" if self.high < 0 else "no clear difference"


@dataclass(frozen=True)
class Measurements:
    """A complete table: every configuration has a result on every prompt.

    Attributes:
        configs: ids of the configurations; ``NONE`` comes first.
        rows: for each configuration except ``NONE``, one row per prompt, in the order of
            ``prompts``.
        prompts, domains: each prompt's id and domain.
        bits: float64 ``[configs, prompts]``, bits per byte.
        failed: configurations that were left out, with the number of prompts they failed on.
        incomplete: prompts that were left out, because not every configuration has run on them.
    """

    configs: list[str]
    rows: dict[str, list[Row]]
    prompts: list[str]
    domains: np.ndarray
    bits: np.ndarray
    failed: dict[str, int]
    incomplete: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Measurements":
        """ConfigError if these are not rows of one run, or all configurations share no prompt."""
        if len({row.run for row in rows}) != 1:
            raise ConfigError(
                f"results must be of one run, got {len({r.run for r in rows})}"
            )
        by_key = {row.key: row for row in rows}
        failed = Counter(row.config for row in rows if row.error is not None)
        configs = [
            c for c in dict.fromkeys(row.config for row in rows) if c not in failed
        ]
        every = list(dict.fromkeys(row.prompt for row in rows))
        prompts = [p for p in every if all((p, c) in by_key for c in configs)]
        if not prompts or not configs:
            raise ConfigError(
                "results hold no prompt that every configuration has a result on"
            )
        table = {config: [by_key[p, config] for p in prompts] for config in configs}
        first = table[configs[0]]
        bits = [
            [row.bits_per_byte_after or 0.0 for row in table[config]]
            for config in configs
        ]
        return cls(
            configs=[NONE, *configs],
            rows=table,
            prompts=prompts,
            domains=np.array([row.domain for row in first]),
            bits=np.array([[row.bits_per_byte_before for row in first], *bits]),
            failed=failed,
            incomplete=len(every) - len(prompts),
        )

    def bits_of(self, config: str) -> np.ndarray:
        """float64 ``[prompts]``, bits per byte."""
        bits: np.ndarray = self.bits[self.configs.index(config)]
        return bits

    def mean_bits(self, config: str) -> float:
        return fmean(self.bits_of(config))

    def mean_seconds(self, config: str) -> float:
        return self.mean_of(config, "seconds_total")

    def mean_of(self, config: str, attribute: str) -> float:
        """The mean of a number in the configuration's rows; 0 for ``NONE``, which has none."""
        return fmean(
            [getattr(row, attribute) for row in self.rows.get(config, ())] or [0]
        )

    def mean_stages(self, config: str) -> dict[str, float]:
        """Mean seconds of each stage of its rows; 0 for ``NONE``."""
        rows = self.rows.get(config, ())
        stages = rows[0].seconds if rows else STAGES
        return {
            stage: fmean([row.seconds[stage] for row in rows] or [0])
            for stage in stages
        }

    def settings(self, config: str) -> dict[str, Any]:
        return self.rows[config][0].settings

    def relative_bits(
        self, config: str, other: str, domain: str | None = None
    ) -> Interval:
        """Mean bits per byte relative to ``other``, minus 1, on one domain or on all prompts."""
        inside = slice(None) if domain is None else self.domains == domain
        return relative(self.bits_of(config)[inside], self.bits_of(other)[inside])

    def finetuning_speed(self, config: str, other: str) -> Interval:
        """How many times as fast as ``other`` it finetunes and merges, by mean seconds."""
        own, others = (
            np.array(
                [r.seconds["finetune"] + r.seconds.get(MERGE, 0) for r in self.rows[c]]
            )
            for c in (config, other)
        )
        return relative(others, own, less=0)

    def prompts_below(self, config: str, other: str) -> int:
        """The number of prompts on which a configuration takes fewer bits per byte than another."""
        return int((self.bits_of(config) < self.bits_of(other)).sum())


@lru_cache(maxsize=4)
def _resamples(count: int) -> np.ndarray:
    """How often each resample draws each of ``count`` prompts, float64 ``[RESAMPLES, count]``."""
    generator = np.random.default_rng(0)
    return generator.multinomial(count, [1 / count] * count, size=RESAMPLES).astype(
        np.float64
    )


def relative(own: np.ndarray, other: np.ndarray, less: float = 1) -> Interval:
    """The mean of ``own`` over that of ``other``, float64 ``[prompts]`` both, minus ``less``."""
    # Paired: a resample draws prompts, and takes both configurations' results on each.
    value = float(own.mean() / other.mean() - less)
    if len(own) < 2:
        return Interval(value, float("nan"), float("nan"))
    weights = _resamples(len(own))
    resampled = (weights @ own) / (weights @ other) - less
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points (time, quality) that no other point beats, in the order of time.

    A point beats another if it is lower in one coordinate and not higher in the other.
    """
    front: list[str] = []
    for name in sorted(points, key=points.__getitem__):
        if not front or points[name][1] < points[front[-1]][1]:
            front.append(name)
    return front


@dataclass(frozen=True)
class AtTime:
    """Bits per byte, float64 ``[prompts]``, of one configuration or linearly between two.

    ``seconds`` is the time that was asked for, or less if the method gains nothing from more.
    """

    configs: tuple[str, ...]
    seconds: float
    bits: np.ndarray


def at_time(measured: Measurements, method: str, seconds: float) -> AtTime | None:
    """The best quality of a `family` at a mean time; None if its configurations are all slower."""
    own = [c for c in measured.rows if family(measured.settings(c)) == method]
    time = {c: measured.mean_seconds(c) for c in sorted(own, key=measured.mean_seconds)}
    quick = [c for c in time if time[c] <= seconds]
    found = [AtTime((c,), time[c], measured.bits_of(c)) for c in quick]
    for first, second in product(quick, [c for c in time if time[c] > seconds]):
        share = (seconds - time[first]) / (time[second] - time[first])
        bits = (1 - share) * measured.bits_of(first) + share * measured.bits_of(second)
        found.append(AtTime((first, second), seconds, bits))
    return min(found, key=lambda at: float(at.bits.mean()), default=None)
