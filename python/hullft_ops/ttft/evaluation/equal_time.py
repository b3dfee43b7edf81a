"""A method's quality at a given time, between the configurations of it that were measured."""

from dataclasses import dataclass

import numpy as np

from hullft_ops.ttft.evaluation.measurements import Measurements


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points (time, quality) that no other is below in one and not above in the other.

    In the order of time; of points that are the same, the first.
    """
    front: list[str] = []
    best = float("inf")
    for name in sorted(points, key=points.__getitem__):
        if points[name][1] < best:
            best = points[name][1]
            front.append(name)
    return front


@dataclass(frozen=True)
class AtTime:
    """What a method would give at a time.

    Attributes:
        configs: the configuration that takes that time, or the two on either side of it.
        seconds: the time; less where even the slowest configuration worth having takes less.
        bits: float64 ``[prompts]``, bits per byte, interpolated linearly between the two.
    """

    configs: tuple[str, ...]
    seconds: float
    bits: np.ndarray


def at_time(measured: Measurements, method: str, seconds: float) -> AtTime | None:
    """The method's quality where a prompt takes ``seconds`` in the mean.

    Of its configurations, those are joined that no other of it beats in both quality and time.
    None where all of them take longer.
    """
    points = {
        c: (measured.mean_seconds(c), measured.mean_bits(c))
        for c in measured.rows
        if measured.settings(c)["method"] == method
    }
    front = pareto(points)
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
