"""Is one result file slower than another? ``python -m benchmarks.compare OLD.json NEW.json``.

Exits with 0 if no case is slower, 1 if one is, and 2 if the files cannot be compared.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.results import Results
from benchmarks.timing import format_seconds

_MACHINE = ("device", "processor", "SIMD level", "threads")


def _machine(results: Results) -> tuple[object, ...]:
    environment = results.environment
    level = environment.get("cpu", {}).get("simd")
    return results.device, environment.get("processor"), level, results.threads


def regressions(old: Results, new: Results, factor: float) -> list[str]:
    """A line for each case whose median is more than ``factor`` times the old one.

    Raises:
        ValueError: the files come from different devices or machines, or share no case.
    """
    for what, before_that, now in zip(
        _MACHINE, _machine(old), _machine(new), strict=True
    ):
        if before_that != now:
            raise ValueError(
                f"the old results are of {what} {before_that}, the new ones of {now}"
            )
    before = {(c.group, c.name): c.seconds for c in old.comparisons}
    after = {(c.group, c.name): c.seconds for c in new.comparisons}
    common = [key for key in after if key in before]
    if not common:
        raise ValueError("the two files have no case in common")
    return [
        f"{group} {name}: {format_seconds(before[group, name])} before, "
        f"{format_seconds(after[group, name])} now, "
        f"{after[group, name] / before[group, name]:.2f} times"
        for group, name in common
        if after[group, name] > factor * before[group, name]
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Exit with 1 if a case of NEW is slower than the same case of OLD.",
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--factor",
        type=float,
        default=1.2,
        help="how many times the old median is a regression (default 1.2)",
    )
    options = parser.parse_args(arguments)
    if not options.factor > 0:
        parser.error(f"--factor must be positive, got {options.factor}")
    try:
        old, new = Results.read(options.old), Results.read(options.new)
        slower = regressions(old, new, options.factor)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in slower:
        print(line)
    missing = {(c.group, c.name) for c in old.comparisons}
    missing -= {(c.group, c.name) for c in new.comparisons}
    for group, name in sorted(missing):
        print(f"{group} {name}: not measured any more")
    common = len(old.comparisons) - len(missing)
    print(f"{len(slower)} of {common} cases slower than {options.factor:g} times")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
