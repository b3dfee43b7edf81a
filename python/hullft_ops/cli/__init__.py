"""Entry point of the ``hullft-ops`` command. If it cannot run, it says why in one line."""

import sys

from hullft_ops import _extras, _terminal


def main() -> None:
    """Run the command line. Without a library or memory that it needs, exit with a line."""
    try:
        from hullft_ops.cli.app import app

        app()
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        if line := _terminal.exit_line(error):
            sys.exit(line)
        # hullft_ops.ttft turns a missing library into an ImportError with that one as its cause.
        cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing is None or missing.split(".")[0] == "hullft_ops":
            raise
        extra = "ray" if missing.split(".")[0] == "ray" else "ttft"
        sys.exit(
            f"{_extras.missing('hullft-ops', missing, extra)}\n"
            "Without it, python -m hullft_ops.collect_env prints what 'hullft-ops info' does."
        )
