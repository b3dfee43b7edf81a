"""How the command ends if a library finds no memory, while it loads or later."""

import errno
import sys
from pathlib import Path

from hullft_ops._terminal import printable

# The loader of shared libraries, torch, Python and C++ have no common type of error for it.
_TEXTS = (
    "failed to map segment from shared object",
    "cannot map zero-fill pages",
    "can't allocate memory",
    "can't start new thread",
    "std::bad_alloc",
)


def exit_line(error: BaseException) -> str | None:
    """A line that says that memory ran out, or None if the error has another cause."""
    cause: BaseException | None = error
    while cause is not None:
        lines = str(cause).splitlines()
        # NumPy's own words come before the loader's.
        said = next((line for line in lines if any(text in line for text in _TEXTS)), None)
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM:
            said = said or next(iter(lines), type(cause).__name__)
        if said:
            return f"hullft-ops: too little memory, or too low a ulimit -v: {printable(said)}"
        cause = cause.__cause__ or cause.__context__
    return None


def end_command(error: BaseException) -> None:
    """Exit with `exit_line`, if there is one and this process is the command, not a user's."""
    as_module = sys.argv[0] == "-m" and "hullft_ops" in sys.orig_argv
    if (as_module or Path(sys.argv[0]).name == "hullft-ops") and (line := exit_line(error)):
        sys.exit(line)
