"""A method's quality at a given time, interpolated between its measured configurations."""

from dataclasses import dataclass

import numpy as np

from hullft_ops.ttft.evaluation.measurements import Measurements


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
    for name in pareto(points):
        while len(hull) > 1 and not _is_below(*(points[n] for n in (*hull[-2:], name))):
            hull.pop()
        hull.append(name)
    return hull


def _is_below(
    left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]
) -> bool:
    """Whether the middle point is below the line from the left to the right one."""
    across, along = right[1] - left[1], right[0] - left[0]
    return (middle[1] - left[1]) * along < across * (middle[0] - left[0])


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
    """The method's quality if a prompt takes ``seconds`` on average.

    The line goes through the method's configurations that no other, and no line between two
    others, beats in both quality and time. None if all of them take longer.
    """
    points = {
        c: (measured.mean_seconds(c), measured.mean_bits(c))
        for c in measured.rows
        if measured.settings(c)["method"] == method
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
