"""Rows of results as matrices, and the certainty of differences between configurations."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
    """An estimate with its percentile bootstrap interval; the bounds are NaN for one prompt."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Measurements:
    """A complete table: every configuration has a result on every prompt.

    Attributes:
        configs: ids of the configurations; ``NONE`` comes first.
        rows: for each configuration except ``NONE``, one row per prompt, in the order of
            ``prompts``.
        prompts: ids of the prompts.
        domains: the domain of each prompt.
        bits: float64 ``[configs, prompts]``, bits per byte.
        seconds: float64 ``[configs, prompts]``, from the prompt to the adapted model.
        failed: configurations that were left out, with the number of prompts they failed on.
        incomplete: prompts that were left out, because not every configuration has run on them.
    """

    configs: list[str]
    rows: dict[str, list[Row]]
    prompts: list[str]
    domains: np.ndarray
    bits: np.ndarray
    seconds: np.ndarray
    failed: dict[str, int]
    incomplete: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Measurements":
        """The results of one run.

        Raises:
            ConfigError: there are no rows, rows of several runs, or no prompt that all
                configurations ran on.
        """
        if len({row.run for row in rows}) != 1:
            raise ConfigError(f"results must be of one run, got {len({r.run for r in rows})}")
        by_key = {row.key: row for row in rows}
        failed = Counter(row.config for row in rows if row.error is not None)
        configs = [c for c in dict.fromkeys(row.config for row in rows) if c not in failed]
        every = list(dict.fromkeys(row.prompt for row in rows))
        prompts = [p for p in every if all((p, c) in by_key for c in configs)]
        if not prompts or not configs:
            raise ConfigError("results hold no prompt that every configuration has a result on")
        table = {config: [by_key[p, config] for p in prompts] for config in configs}
        first = table[configs[0]]
        bits = [[row.bits_per_byte_after or 0.0 for row in table[config]] for config in configs]
        seconds = [[row.seconds_total for row in table[config]] for config in configs]
        return cls(
            configs=[NONE, *configs],
            rows=table,
            prompts=prompts,
            domains=np.array([row.domain for row in first]),
            bits=np.array([[row.bits_per_byte_before for row in first], *bits]),
            seconds=np.array([[0.0] * len(prompts), *seconds]),
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
        return float(self.seconds[self.configs.index(config)].mean())

    def mean_of(self, config: str, attribute: str) -> float:
        """The mean of a number in the configuration's rows; 0 for ``NONE``, which has none."""
        values = [getattr(row, attribute) for row in self.rows.get(config, ())]
        return fmean(values or [0])

    def mean_stages(self, config: str) -> dict[str, float]:
        """Mean seconds of each stage of its rows; 0 for ``NONE``."""
        rows = self.rows.get(config, ())
        stages = rows[0].seconds if rows else STAGES
        return {stage: fmean([row.seconds[stage] for row in rows] or [0]) for stage in stages}

    def settings(self, config: str) -> dict[str, Any]:
        return self.rows[config][0].settings

    def relative_bits(self, config: str, other: str, domain: str | None = None) -> Interval:
        """Mean bits per byte relative to ``other``, minus 1, on one domain or on all prompts."""
        own, others = self.bits_of(config), self.bits_of(other)
        if domain is None:
            return self.relative_to(config, others)
        inside = self.domains == domain
        return _ratio_interval(own[inside], others[inside], resampling(int(inside.sum())))

    def relative_to(self, config: str, bits: np.ndarray) -> Interval:
        """Mean bits per byte relative to the mean of ``bits``, float64 ``[prompts]``, minus 1."""
        return _ratio_interval(self.bits_of(config), bits, self._weights)

    def finetuning_speed(self, config: str, other: str) -> Interval:
        """How many times as fast as ``other`` it finetunes and merges, by mean seconds."""
        own, others = (
            np.array([r.seconds["finetune"] + r.seconds.get(MERGE, 0) for r in self.rows[c]])
            for c in (config, other)
        )
        less_one = _ratio_interval(others, own, self._weights)
        return Interval(less_one.value + 1, less_one.low + 1, less_one.high + 1)

    def prompts_below(self, config: str, other: str) -> int:
        """The number of prompts on which a configuration takes fewer bits per byte than another."""
        return int((self.bits_of(config) < self.bits_of(other)).sum())

    @cached_property
    def _weights(self) -> np.ndarray:
        return resampling(len(self.prompts))


def resampling(count: int, *, seed: int = 0) -> np.ndarray:
    """How often each resample draws each of ``count`` prompts, float64 ``[R, count]``."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, [1 / count] * count, size=RESAMPLES).astype(np.float64)


def _ratio_interval(own: np.ndarray, other: np.ndarray, weights: np.ndarray) -> Interval:
    # Paired: a resample draws prompts, and takes both configurations' results on each.
    value = own.mean() / other.mean() - 1
    if len(own) < 2:
        return Interval(float(value), float("nan"), float("nan"))
    resampled = (weights @ own) / (weights @ other) - 1
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(value), float(low), float(high))


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points (time, quality) that no other point beats.

    A point beats another if it is lower in one coordinate and not higher in the other. The names
    are in the order of time. Of equal points the first is named.
    """
    front: list[str] = []
    best = float("inf")
    for name in sorted(points, key=points.__getitem__):
        if points[name][1] < best:
            best = points[name][1]
            front.append(name)
    return front


def lower_hull(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points of the front that are below every line between two others of it.

    Two configurations with the same steps differ a little in time by chance. A front through the
    worse of them would make the method look worse than it is.
    """
    hull: list[str] = []

    def last_is_below(right: tuple[float, float]) -> bool:
        left, middle = (points[name] for name in hull[-2:])
        across, along = right[1] - left[1], right[0] - left[0]
        return (middle[1] - left[1]) * along < across * (middle[0] - left[0])

    for name in pareto(points):
        while len(hull) > 1 and not last_is_below(points[name]):
            hull.pop()
        hull.append(name)
    return hull


@dataclass(frozen=True)
class AtTime:
    """A method's quality at a given time.

    Attributes:
        configs: the configuration that takes that time, or the two on either side of it.
        seconds: the time, or less if even the slowest configuration of the front takes less.
        bits: float64 ``[prompts]``, bits per byte, interpolated linearly between the two.
    """

    configs: tuple[str, ...]
    seconds: float
    bits: np.ndarray


def at_time(measured: Measurements, method: str, seconds: float) -> AtTime | None:
    """The quality of a method, by its `family`, if a prompt takes ``seconds`` on average.

    The line goes through the method's configurations that no other, and no line between two
    others, beats in both quality and time. None if all of them take longer.
    """
    points = {
        c: (measured.mean_seconds(c), measured.mean_bits(c))
        for c in measured.rows
        if family(measured.settings(c)) == method
    }
    front = lower_hull(points)
    below = [c for c in front if points[c][0] <= seconds]
    if not below:
        return None
    first = below[-1]
    start, bits = points[first][0], measured.bits_of(first)
    if len(below) == len(front) or start == seconds:
        return AtTime((first,), start, bits)
    second = front[len(below)]
    share = (seconds - start) / (points[second][0] - start)
    mixed = (1 - share) * bits + share * measured.bits_of(second)
    return AtTime((first, second), seconds, mixed)
