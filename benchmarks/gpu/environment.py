"""Versions, the binary and the card. Checks that every operator has a kernel for it."""

import subprocess
from collections.abc import Iterator
from typing import Any

import torch

from hullft_ops._ops import ops
from hullft_ops.collect_env import collect_env

_QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"


def run(device: torch.device, *, small: bool) -> Iterator[dict[str, Any]]:
    key = "CUDA" if device.type == "cuda" else "CPU"
    names = [
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(f"{ops.name}::")
        and not torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    ]
    if names:
        raise RuntimeError(f"no {key} kernel is registered for {', '.join(names)}")
    yield {**collect_env(), "nvidia_smi": _nvidia_smi() if key == "CUDA" else None}


def _nvidia_smi() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
