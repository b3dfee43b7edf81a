"""How the commands end if they cannot do their work."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import OutOfMemoryError

from hullft_ops._terminal import echo, printable
from hullft_ops.ttft.errors import NonFiniteLossError

# The classes whose fields are options.
_FIELD = re.compile(r"\b(?:TTFTConfig|AdapterConfig|Workers): (\w+)")


@contextmanager
def errors_of(command: str) -> Iterator[None]:
    """Print a warning in one line. After an error print one line and exit with 2.

    After Ctrl-C, exit with 130. No warning, log record or error can control the terminal.
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
        message = _FIELD.sub(
            lambda field: f"--{field[1]}".replace("_", "-"), str(error)
        )
        echo(f"{prefix}: {message}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        echo(f"{prefix}: interrupted: run the same command again to go on", err=True)
        sys.exit(130)
    finally:
        logging.setLogRecordFactory(record_of)
