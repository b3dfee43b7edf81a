"""One launch each of the kernels that take most of the time, for a profiler."""

from collections.abc import Iterator
from typing import Any

import torch

import hullft_ops

_CANDIDATES, _DIM, _STEPS = 200, 1024, 250
_ELEMENTS = 124_000_000  # about GPT-2


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    pool = torch.randn(1, _CANDIDATES, 64 if small else _DIM, device=device)
    # Gram matrix, then Frank-Wolfe steps.
    hullft_ops.fw_select(pool, pool.mean(1), 50, max_iter=_STEPS)
    param = torch.zeros(1000 if small else _ELEMENTS, device=device)
    param.grad = torch.ones_like(param)
    hullft_ops.ReplayAdam([param]).step(repeats=2)
    yield {"launched": ["gram_kernel", "fw_warp_kernel", "adam_kernel"]}
