"""How the commands end if they cannot do their work."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import OutOfMemoryError

from hullft_ops._terminal import echo, printable
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
    """Print a warning in one line. After an error print one line and exit with 2.

    After Ctrl-C, say what to run again and exit with 130. No warning, log record or error can
    control the terminal.
    """
    prefix = f"hullft-ops {command}"
    record_of = logging.getLogRecordFactory()

    def show(message: Warning | str, *_: Any) -> None:
        echo(f"{prefix}: {message}", err=True)

    def printable_record(*args: Any) -> logging.LogRecord:
        record = record_of(*args)
        record.msg, record.args = printable(record.getMessage(), lines=True), ()
        return record

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]
            logging.setLogRecordFactory(printable_record)
            yield
    except RecursionError as error:
        echo(f"{prefix}: an input is nested too deep: {error}", err=True)
        sys.exit(2)
    except (ValueError, OSError, NonFiniteLossError, OutOfMemoryError) as error:
        echo(f"{prefix}: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        again = _AGAIN.get(command, "nothing was written; run the same command again")
        echo(f"{prefix}: interrupted: {again}", err=True)
        sys.exit(130)
    finally:
        logging.setLogRecordFactory(record_of)
