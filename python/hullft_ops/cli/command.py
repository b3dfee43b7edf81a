"""From the command line to a command's function, and how a command ends if it fails."""

import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial, wraps
from inspect import getdoc
from typing import Any

import tyro
from torch import OutOfMemoryError
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hullft_ops.ttft.loss import NonFiniteLossError
from hullft_ops.ttft.models.memory import keep_freed_memory
from hullft_ops.ttft.terminal import echo, printable, progress_shown

_DESCRIPTION = "Test-time finetuning of language models with HullFT."
# How the error of a class of options names a field.
_FIELD = re.compile(r"\b(?:\w+Config|Experiment|Workers): (\w+) must ")


def run_command(commands: dict[str, Callable[..., None]]) -> None:
    """Call the function of the command that ``sys.argv`` names; tyro reads its signature."""
    deferred = {name: _deferred(command) for name, command in commands.items()}
    messages = io.StringIO()
    try:
        # A message may quote the command line, where a shell's * puts the names of files.
        with redirect_stderr(messages):
            call = tyro.extras.subcommand_cli_from_dict(
                deferred,
                prog="hullft-ops",
                description=_DESCRIPTION,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    finally:
        sys.stderr.write(printable(messages.getvalue(), lines=True))
    keep_freed_memory()
    # Loading a model would draw its own bar through ours, and a table of what `load_model` says.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    with errors_of(call.func.__name__), progress_shown():
        call()


def _deferred(command: Callable[..., None]) -> Callable[..., partial[None]]:
    """The command, to be called later: tyro would print its errors in a box."""
    # tyro would keep the line breaks in the description of an argument.
    command.__doc__ = re.sub(r"\n {8}", " ", getdoc(command) or "")

    @wraps(command)
    def bind(**arguments: Any) -> partial[None]:
        return partial(command, **arguments)

    return bind


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
    except ModuleNotFoundError:
        raise
    # An ImportError of ours says which library is missing, and how to install it.
    except (
        ImportError,
        ValueError,
        OSError,
        NonFiniteLossError,
        OutOfMemoryError,
    ) as error:
        message = _FIELD.sub(
            lambda field: f"--{field[1].replace('_', '-')} must ", str(error)
        )
        echo(f"{prefix}: {message}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        echo(f"{prefix}: interrupted: run the same command again to go on", err=True)
        sys.exit(130)
    finally:
        logging.setLogRecordFactory(record_of)
