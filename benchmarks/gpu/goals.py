"""The goals that a step sets for a comparison."""

from typing import Any

from benchmarks.recorder import Comparison


def goal(
    comparison: Comparison, fact: str, limit: float, *, at_least: bool = False
) -> dict[str, Any]:
    """A row of the table of goals: the fact must be at most ``limit``, or at least ``limit``."""
    measured = comparison.facts[fact]
    return {
        "text": f"{comparison.group} {comparison.case}: {fact}",
        "limit": limit,
        "measured": measured,
        "met": measured >= limit if at_least else measured <= limit,
    }
