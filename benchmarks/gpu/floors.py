"""What the card can do at best, measured in the same run: how fast it copies and multiplies."""

from collections.abc import Callable
from functools import lru_cache

import torch

from benchmarks.timing import Pace, measure, synchronised

_COPY_BYTES = 2**30
_MATRIX = 8192


@lru_cache
def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes a second, read and written together."""
    size = _COPY_BYTES if device.type == "cuda" else 2**16
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _median(lambda: target.copy_(source), device)
    return 2 * size / seconds


@lru_cache
def flops_per_second(device: torch.device, dtype: torch.dtype, tf32: bool) -> float:
    """Of torch's product of two large square matrices; a product and its sum are two."""
    size = _MATRIX if device.type == "cuda" else 64
    a = torch.randn(size, size, device=device).to(dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        return 2 * size**3 / _median(lambda: a @ a, device)
    finally:
        torch.set_float32_matmul_precision(before)


def _median(call: Callable[[], object], device: torch.device) -> float:
    return measure(synchronised(call, device), Pace(0.3, 4, 100))
