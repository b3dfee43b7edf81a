"""Gradient Reuse for picks that come in an order: which steps share a gradient."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Literal

Reuse = Literal["global", "consecutive"]


def reuse_runs(picks: Iterable[int], reuse: Reuse) -> list[tuple[int, int]]:
    """Turns picks in their order, such as SIFT makes them, into (example, repeats).

    Args:
        picks: examples, one for each optimizer step.
        reuse: "consecutive" merges equal picks that follow one another and keeps the order;
            "global" merges all picks of an example, at the place of its first.

    Returns:
        The repeats add up to the number of picks.

    Raises:
        ValueError: ``reuse`` is neither.
    """
    if reuse == "consecutive":
        return [(example, sum(1 for _ in equal)) for example, equal in groupby(picks)]
    if reuse == "global":
        return list(Counter(picks).items())
    raise ValueError(f"reuse_runs: reuse must be 'global' or 'consecutive', got {reuse!r}")
