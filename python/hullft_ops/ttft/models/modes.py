"""Putting a model in eval mode, or in another precision, for a while."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from hullft_ops.ttft.contexts import at_exit, signal_safe

Precision = Literal["bfloat16"]
# bfloat16 where the device has instructions for it.
AutoPrecision = Literal["auto", "bfloat16"]


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


def autocast(
    device: torch.device, dtype: AutoPrecision | None
) -> AbstractContextManager[Any]:
    """The context of a forward pass in ``dtype``; None for the model's own."""
    if dtype is None or (dtype == "auto" and not _computes_bfloat16(device)):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
