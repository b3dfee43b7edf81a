"""Versions, the binary and the card, and whether every operator has a kernel for it."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.tasks import Task
from hullft_ops._ops import ops
from hullft_ops.collect_env import collect_env


def tasks(device: torch.device, *, small: bool) -> Iterator[Task]:
    yield "versions", lambda findings: findings.fact("versions", collect_env())
    yield "kernels", partial(_check_kernels, device)


def _check_kernels(device: torch.device, findings: Findings) -> None:
    key = "CUDA" if device.type == "cuda" else "CPU"
    missing = [
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(f"{ops.name}::")
        and not torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    ]
    assert not missing, f"no {key} kernel is registered for {', '.join(missing)}"
