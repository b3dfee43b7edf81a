"""The goals that a step sets for a comparison."""

from typing import Any

from benchmarks.timing import Comparison


def goal(
    comparison: Comparison, fact: str, wanted: float, *, at_least: bool = False
) -> dict[str, Any]:
    """A row of the table of goals: the fact must be at most ``wanted``, or at least ``wanted``."""
    measured = comparison.facts[fact]
    return {
        "text": f"{comparison.group} {comparison.name}: {fact}",
        "wanted": wanted,
        "measured": measured,
        "met": measured >= wanted if at_least else measured <= wanted,
    }
