"""Training and evaluation mode of a model's modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hullft_ops.ttft.claims import Claim


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Put every module back in its own mode on exit; ``model.train`` would make them all alike.

    Other threads that score or adapt the model wait or are refused meanwhile.
    """
    with Claim(model):
        modes = [(module, module.training) for module in model.modules()]
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
