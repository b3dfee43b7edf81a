"""What a command prints: foreign texts that cannot steer the terminal, and a lack of memory."""

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# The loader of shared libraries, torch, Python and C++ have no common type of error for it.
_NO_MEMORY = (
    "failed to map segment from shared object",
    "cannot map zero-fill pages",
    "can't allocate memory",
    "can't start new thread",
    "std::bad_alloc",
)
# Control characters (C0 except tabs, DEL, C1), halves of surrogate pairs, which no terminal can
# encode, and marks that change the direction of writing.
_STEERING = (
    *range(0x09),
    *range(0x0A, 0x20),
    *range(0x7F, 0xA0),
    *range(0xD800, 0xE000),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)
_ESCAPES = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _STEERING
}


def printable(text: object, *, lines: bool = False) -> str:
    """``str(text)`` with escapes for what steers a terminal; ``lines`` leaves line ends alone."""
    return str(text).translate(_ESCAPES | {ord("\n"): "\n"} if lines else _ESCAPES)


def echo(*lines: object, err: bool = False) -> None:
    """Print each as a line, `printable`, to stdout or to stderr."""
    print(
        *map(printable, lines),
        sep="\n",
        file=sys.stderr if err else sys.stdout,
        flush=True,
    )


def show(console: "Console", *lines: object) -> None:
    """Print each as a line, `printable`, to a console."""
    text = "\n".join(map(printable, lines))
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def exit_line(error: BaseException) -> str | None:
    """A line that says that memory ran out, or None if the error has another cause."""
    lines = str(error).splitlines() or [type(error).__name__]
    # NumPy's own words come before the loader's.
    said = next(
        (line for line in lines if any(text in line for text in _NO_MEMORY)), None
    )
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        said = said or lines[0]
    if said:
        return (
            f"hullft-ops: too little memory, or too low a ulimit -v: {printable(said)}"
        )
    cause = error.__cause__ or error.__context__
    return exit_line(cause) if cause else None


def end_command(error: BaseException) -> None:
    """Exit with `exit_line`, if there is one and this process is the command, not a user's."""
    as_module = sys.argv[0] == "-m" and "hullft_ops" in sys.orig_argv
    if (as_module or Path(sys.argv[0]).name == "hullft-ops") and (
        line := exit_line(error)
    ):
        sys.exit(line)
