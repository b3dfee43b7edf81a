"""The order of the steps on a support, and which of them compute a new gradient."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ORDERS = ("grouped", "interleaved")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Sweep:
    """Consecutive steps with one gradient.

    Attributes:
        example: its position in the support.
        fresh: compute the gradient; otherwise use the one that was kept for the example.
        repeats: how many steps.
        keep: a later sweep needs the gradient too.
    """

    example: int
    fresh: bool
    repeats: int
    keep: bool


def plan(counts: Sequence[int], refreshes: Sequence[int], order: str) -> Iterator[Sweep]:
    """The sweeps for examples with these counts, with a gradient for every ``refresh`` steps.

    "grouped" takes an example's steps one after the other, as Khamis and Maalouf
    (arXiv:2605.30337) do. "interleaved" goes round the examples that have steps left.
    """
    if order == "grouped":
        for example, (count, refresh) in enumerate(zip(counts, refreshes, strict=True)):
            for done in range(0, count, refresh):
                yield Sweep(example, True, min(refresh, count - done), False)
        return
    for done in range(max(counts)):
        for example, (count, refresh) in enumerate(zip(counts, refreshes, strict=True)):
            if done < count:
                keep = done + 1 < count and (done + 1) % refresh != 0
                yield Sweep(example, done % refresh == 0, 1, keep)


def learning_rate_factor(schedule: str, step: int, steps: int) -> float:
    """The factor on the learning rate at step ``step`` of ``steps``, counted from 0.

    "linear" and "cosine" fall from 1 to 0; only a step after the last would have 0.
    """
    if schedule == "linear":
        return 1 - step / steps
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / steps)) / 2
    return 1.0
