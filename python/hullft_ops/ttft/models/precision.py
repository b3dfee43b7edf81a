"""Reading a model in another precision."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from hullft_ops.ttft.restore import (
    at_exit,
    block,
    eval_mode,
    exclusive,
    thread_modes_restored,
)
from hullft_ops.ttft.validation import options_class

# "auto" is bfloat16 where the device has instructions for it.
AutoPrecision = Literal["auto", "bfloat16"]


@options_class
class ReadingOptions:
    """How a model reads."""

    dtype: AutoPrecision | None = "auto"
    """bfloat16 to train, read and score under autocast, and to write where that is faster; auto for
    that where the device has instructions for it; None for the model's own dtype."""

    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens to cut passages to; None for the model's window."""


def autocast(
    device: torch.device, dtype: AutoPrecision | None
) -> AbstractContextManager[Any]:
    """The context of a forward pass in ``dtype``; None for the model's own."""
    if dtype is None or (dtype == "auto" and not _computes_bfloat16(device)):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@block
def reading(model: Any, dtype: AutoPrecision | None) -> Iterator[None]:
    """Keep others from the model in the body. It is in eval mode, without gradients.

    RuntimeError if it is in use elsewhere.
    """
    with (
        exclusive(model),
        eval_mode(model),
        thread_modes_restored(model.device),
        torch.no_grad(),
        autocast(model.device, dtype),
    ):
        yield


@block
def casting_once(model: nn.Module) -> Iterator[None]:
    """Let autocast keep its copies of all weights: by itself it keeps only copies of weights
    with ``requires_grad``."""
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
