"""What a mistake that the tests must notice is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One wrong edit, the build and the check that see it, and what they say."""

    unit: str
    file: str
    old: str
    new: str
    kind: str
    case: str
    report: str


WRONG = "AssertionError"
RACE = "race on|read of uninitialised"
OUTSIDE = "use-after-poison"
"""Of a device buffer: driver.h poisons what surrounds one."""
