"""How the commands end if they cannot do their work."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import OutOfMemoryError

from hullft_ops._terminal import echo
from hullft_ops.ttft.errors import NonFiniteLossError

# What a command that is run again does. The others write nothing before the end.
_AGAIN = {
    "demo": "run the same command again: it goes on with its datastore and rows",
    "evaluate": "run the same command again: it goes on with the next row",
    "index": "run the same command again: it goes on with the next batch",
    "train": "run the same command again: it goes on from the last checkpoint",
}


@contextmanager
def errors_of(command: str) -> Iterator[None]:
    """Print warnings of ours in one line. After an error print one line and exit with 2.

    After Ctrl-C, say what to run again and exit with 130.
    """
    prefix = f"hullft-ops {command}"
    show = warnings.showwarning

    def show_ours(message: Warning | str, category: Any, file: str, *rest: Any) -> None:
        if str(message).startswith("TestTimeFinetuner: "):
            echo(f"{prefix}: {message}", err=True)
        else:
            show(message, category, file, *rest)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_ours  # type: ignore[assignment]
            yield
    except (ValueError, OSError, NonFiniteLossError, OutOfMemoryError) as error:
        echo(f"{prefix}: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        again = _AGAIN.get(command, "nothing was written; run the same command again")
        echo(f"{prefix}: interrupted: {again}", err=True)
        sys.exit(130)
