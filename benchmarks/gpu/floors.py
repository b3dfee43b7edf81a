"""What the card can do at best, measured in the same run: how fast it copies and multiplies."""

from collections.abc import Callable
from functools import lru_cache

import torch

from benchmarks.timing import Pace, measure, synchronised

_COPY_BYTES = 2**30
_MATRIX = 8192


@lru_cache
def copy_bytes_per_second(device: torch.device, small: bool) -> float:
    """Bytes a second, read and written together."""
    size = 2**16 if small else _COPY_BYTES
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _median(lambda: target.copy_(source), device, small)
    if not torch.equal(target[-1], source[-1]):
        raise RuntimeError("the copy did not copy")
    return 2 * size / seconds


@lru_cache
def flops_per_second(
    device: torch.device, dtype: torch.dtype, tf32: bool, small: bool
) -> float:
    """Of torch's product of two large square matrices; a product and its sum are two."""
    size = 64 if small else _MATRIX
    a = torch.randn(size, size, device=device).to(dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        return 2 * size**3 / _median(lambda: a @ a, device, small)
    finally:
        torch.set_float32_matmul_precision(before)


def _median(call: Callable[[], object], device: torch.device, small: bool) -> float:
    pace = Pace(0.0, 2, 2) if small else Pace(0.3, 4, 100)
    return measure(synchronised(call, device), pace)
