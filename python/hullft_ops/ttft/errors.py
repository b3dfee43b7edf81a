"""Errors of test-time finetuning that a caller may want to catch."""


class NonFiniteLossError(RuntimeError):
    """A loss was not finite, for example because the learning rate is too high."""


class InputError(ValueError):
    """A command cannot run on its inputs; the message says why."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
