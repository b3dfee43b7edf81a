"""The context that computes in bfloat16."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["bfloat16"]


def autocast(
    device: torch.device, dtype: Precision | None
) -> AbstractContextManager[Any]:
    """The context of a forward pass in ``dtype``; None for the model's own."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
