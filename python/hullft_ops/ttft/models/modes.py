"""Putting a model in eval mode, or torch in another mode or precision, for a while."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import call
from threading import get_ident
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from hullft_ops.ttft.signals import at_exit, signal_safe
from hullft_ops.ttft.validation import options_class

Precision = Literal["bfloat16"]
# bfloat16 where the device has instructions for it.
AutoPrecision = Literal["auto", "bfloat16"]


@options_class
class ReadingOptions:
    """How a model reads."""

    dtype: AutoPrecision | None = "auto"
    """bfloat16 to train, read and score under autocast, and to write where that is faster; auto for
    that where the device has instructions for it; None for the model's own dtype."""

    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens to cut passages to; None for the model's window."""


@signal_safe
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and at the end every module back in its mode from before."""
    # ``model.train`` would give all the same mode.
    modes = [(module, module.training) for module in model.modules()]
    with at_exit(partial(restore_modes, modes)):
        model.train(False)
        yield


def restore_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Put each module back in its mode."""
    for module, training in modes:
        module.training = training


class ThreadModes:
    """The grad mode of this thread, and its autocast for a device, when this is made.

    Ctrl-C within the end of `torch.no_grad` or `torch.autocast` leaves theirs on.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = get_ident()
        self._records_gradients = torch.is_grad_enabled()
        self._device = device.type
        self._is_on = torch.is_autocast_enabled(self._device)
        self._dtype = torch.get_autocast_dtype(self._device)
        # Torch tells the depth only when it changes. One instruction: no signal comes between.
        _, self._depth = map(
            call, (torch.autocast_increment_nesting, torch.autocast_decrement_nesting)
        )

    def put_back(self) -> None:
        """Give them back to the thread that had them."""
        # A generator that nobody holds any more may be closed in any thread.
        if get_ident() != self._thread:
            return
        torch.set_grad_enabled(self._records_gradients)
        torch.set_autocast_enabled(self._device, self._is_on)
        torch.set_autocast_dtype(self._device, self._dtype)
        torch.autocast_increment_nesting()
        while torch.autocast_decrement_nesting() > self._depth:
            pass
        if self._depth == 0:
            # Copies of weights, which autocast keeps no longer than it is on.
            torch.clear_autocast_cache()


def autocast(
    device: torch.device, dtype: AutoPrecision | None
) -> AbstractContextManager[Any]:
    """The context of a forward pass in ``dtype``; None for the model's own."""
    if dtype is None or (dtype == "auto" and not _computes_bfloat16(device)):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@signal_safe
def casting_once(model: nn.Module) -> Iterator[None]:
    """Let autocast keep its copies of all weights: it keeps those of weights with ``requires_grad``
    alone."""
    frozen = [
        parameter
        for parameter in model.parameters()
        if parameter.is_floating_point()
        and not parameter.requires_grad
        and not parameter.is_inference()
    ]
    with at_exit(partial(_set_requires_grad, frozen, False)):
        _set_requires_grad(frozen, True)
        yield


def _set_requires_grad(parameters: Iterable[nn.Parameter], value: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(value)


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
