"""Errors of test-time finetuning that a caller may want to catch."""


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
