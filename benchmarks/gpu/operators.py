"""Runs and checks every operator once, on inputs small enough for compute-sanitizer."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.calls import calls


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    named = calls(seed=0)
    for name, call in named.items():
        try:
            call.assert_right(call.run(*call.on(device)))
        except AssertionError as error:
            raise RuntimeError(f"{name} is wrong: {error}") from error
    yield {"checked": list(named)}
