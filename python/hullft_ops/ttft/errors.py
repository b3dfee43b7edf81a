"""Errors of test-time finetuning that a caller may want to catch."""


class NonFiniteLossError(RuntimeError):
    """A loss was not finite, for example because the learning rate is too high."""


class ScaleError(ValueError):
    """Workers could not start, or died of their work; the message says which."""


class InputError(ValueError):
    """A command cannot run on its inputs; the message says why."""
