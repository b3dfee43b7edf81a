"""Errors of test-time finetuning that a caller may want to go on after."""


class NonFiniteLossError(RuntimeError):
    """A loss was not finite, as it is where the learning rate is too high."""


class ScaleError(ValueError):
    """Workers that cannot be had, or that died of what they were given; the message says which."""


class InputError(ValueError):
    """A command cannot run on what it is given; the message says why."""
