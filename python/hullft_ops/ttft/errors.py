"""Errors that a caller may want to catch, and one of them in place of what libraries raise."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class NonFiniteLossError(RuntimeError):
    """A loss was not finite, for example because the learning rate is too high."""


class NothingToScoreError(ValueError):
    """No token of a text has a context, so the text has no score."""


class InputError(ValueError):
    """An input cannot be used: an option, a file, a model. The message names it and says why."""


def first_line(error: Exception) -> str:
    """The first line of an error's message. Its type comes first where the message says little, as
    that of a KeyError does."""
    name = type(error).__name__
    message = str(error).strip()
    if not message:
        return name
    line = message.splitlines()[0]
    return line if isinstance(error, OSError | ValueError) else f"{name}: {line}"


@contextmanager
def input_errors(subject: str) -> Iterator[None]:
    """Turn the libraries' exceptions into an `InputError` of one line, which begins with
    ``subject``."""
    try:
        yield
    except (InputError, ImportError, torch.OutOfMemoryError):
        raise
    # The libraries do not document what they raise for foreign files.
    except Exception as error:
        reason = first_line(error)
        # The libraries advise passing that argument.
        if "trust_remote_code" in str(error):
            reason = "it needs code that ships with it, which is not run"
        raise InputError(f"{subject}: {reason}") from error
