"""Entry point of the ``hullft-ops`` command. If it cannot run, it says why in one line."""

import sys

from hullft_ops import _extras, _terminal


def main() -> None:
    """Run the command line.

    If a library is missing, it exits with a line that names the extra. It also exits with a line if
    memory runs out.
    """
    try:
        from hullft_ops.cli.app import app

        app()
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        if line := _terminal.exit_line(error):
            sys.exit(line)
        missing = _missing_library(error)
        if missing is None:
            raise
        sys.exit(
            f"{_extras.missing('hullft-ops', missing, _extra_of(missing))}\n"
            "Without it, python -m hullft_ops.collect_env prints what 'hullft-ops info' does."
        )


def _extra_of(library: str) -> str:
    return "ray" if library.split(".")[0] == "ray" else "ttft"


def _missing_library(error: Exception) -> str | None:
    # hullft_ops.ttft turns a missing library into an ImportError with that one as its cause.
    cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    if not isinstance(cause, ModuleNotFoundError) or cause.name is None:
        return None
    return None if cause.name.split(".")[0] == "hullft_ops" else cause.name
