"""bfloat16: where it is fast, and the context that computes in it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["bfloat16"]
# Of x86-64 and of Arm, as torch names them.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 by instructions of its own."""
    if device.type == "cuda":
        is_native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return is_native
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(capabilities.get(i) for i in _INSTRUCTIONS)


def autocast(
    device: torch.device, dtype: Precision | None
) -> AbstractContextManager[Any]:
    """The context of a forward pass in ``dtype``; None for the model's own."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
