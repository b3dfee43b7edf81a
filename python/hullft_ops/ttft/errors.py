"""Errors of test-time finetuning that a caller may want to go on after."""


class NonFiniteLossError(RuntimeError):
    """A loss was not finite: the learning rate is too high. The model has been restored."""


class ScaleError(ValueError):
    """Workers that cannot be had, or that died of what they were given; the message says which."""
