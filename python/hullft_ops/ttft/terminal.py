"""Printing: foreign text cannot control the terminal, lists read well, long waits have bars."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Thread
from time import sleep
from typing import Any

# Control characters (C0 except tabs, DEL, C1), halves of surrogate pairs, which no terminal can
# encode, and marks that change the direction of writing.
_CONTROLS = (
    *range(0x09),
    *range(0x0A, 0x20),
    *range(0x7F, 0xA0),
    *range(0xD800, 0xE000),
    0x061C,
    *range(0x200E, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)
# A list names no more.
NAMED = 5
_ESCAPES = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS
}


def printable(text: object, *, lines: bool = False) -> str:
    """``str(text)`` with its control characters escaped; ``lines`` keeps the line breaks."""
    return str(text).translate(_ESCAPES | {ord("\n"): "\n"} if lines else _ESCAPES)


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = names[:NAMED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def counted(count: int, noun: str) -> str:
    """For example "1 prompt" or "2 prompts"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def echo(*lines: object, err: bool = False) -> None:
    """Print each as a line, `printable`, to stdout or to stderr."""
    stream = sys.stderr if err else sys.stdout
    for line in lines:
        print(printable(line), file=stream)
    stream.flush()


# Seconds until a bar appears.
_DELAY = 1.0
_draws = ContextVar("_draws", default=False)


@contextmanager
def progress_shown() -> Iterator[None]:
    """Let progress show in the body, as a command does and a library does not."""
    token = _draws.set(True)
    try:
        yield
    finally:
        _draws.reset(token)


def progress_line(line: str) -> None:
    """Print to stderr what begins, within `progress_shown`."""
    if _draws.get():
        echo(line, err=True)


@contextmanager
def waiting(line: str) -> Iterator[None]:
    """As `progress_line`, and in a terminal a clock moves below until the body ends."""
    if not _draws.get():
        yield
        return

    from tqdm import tqdm

    progress_line(line)
    # A bar without a count: others may move below it.
    with ticking(tqdm(bar_format="{elapsed}", leave=False, disable=None)):
        yield


def progress(items: Iterable[Any], **options: Any) -> Iterable[Any]:
    """``items``, within `progress_shown` under a `tqdm` bar that appears after a second.

    Even a disabled bar takes a lock that all threads share, and Ctrl-C may leave it taken.
    """
    if not _draws.get():
        return items

    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(items, delay=_DELAY, leave=False, **options)
    return bar


def ticking(bar: Any) -> Any:
    """A `tqdm` bar, whose clock moves in a terminal until it is closed."""

    def redraw() -> None:
        while not bar.disable:
            bar.refresh()
            sleep(1.0)

    if sys.stderr.isatty():
        Thread(target=redraw, daemon=True).start()
    return bar
