"""Switches of the extension, for as long as a fixture lasts."""

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def switched(
    read: Callable[[], T], switch: Callable[[T], None], value: T
) -> Iterator[T]:
    """Gives ``value`` while it is set; what was set before is set again afterwards."""
    before = read()
    switch(value)
    yield value
    switch(before)
