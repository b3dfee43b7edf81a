"""Whether a device multiplies bfloat16 in hardware."""

import torch

from hullft_ops import _C


def has_bfloat16(device: torch.device) -> bool:
    """False for a processor on which torch multiplies bfloat16 in software.

    Products of GPT-2's sizes then took 4 to 5 times as long as in float32 with AVX-512, where
    oneDNN emulates the instructions, and 4 to 190 times with AVX2, where it has no kernels for them
    (2 threads, torch 2.13).
    """
    if device.type != "cpu":
        return True
    # Of an emulation torch says that it is supported.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and not _C.lacks_bfloat16()
