"""What a step wants of a comparison."""

from typing import Any

from benchmarks.timing import Comparison


def goal(
    comparison: Comparison, fact: str, wanted: float, *, at_least: bool = False
) -> dict[str, Any]:
    """A row of the table of goals: the fact is to be at most ``wanted``, or at least."""
    measured = comparison.facts[fact]
    return {
        "text": f"{comparison.group} {comparison.name}: {fact}",
        "wanted": wanted,
        "measured": measured,
        "met": measured >= wanted if at_least else measured <= wanted,
    }
