"""Printing foreign texts, names, errors and models so that they cannot steer the terminal."""

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Control characters (C0 except tabs, DEL, C1), halves of surrogate pairs, which no terminal can
# encode, and marks that change the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: object, *, lines: bool = False) -> str:
    """``str(text)`` with escapes such as ``\\x1b`` for characters that steer a terminal.

    Args:
        text: the object to print.
        lines: leave line ends as they are.
    """

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        if lines and code == ord("\n"):
            return "\n"
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return _STEERING.sub(escaped, str(text))


def echo(*lines: object, err: bool = False) -> None:
    """Print each as a line, `printable`, to stdout or to stderr."""
    print(*map(printable, lines), sep="\n", file=sys.stderr if err else sys.stdout, flush=True)


def show(console: "Console", *lines: object) -> None:
    """Print each as a line, `printable`, to a console."""
    text = "\n".join(map(printable, lines))
    console.print(text, markup=False, highlight=False, soft_wrap=True)
