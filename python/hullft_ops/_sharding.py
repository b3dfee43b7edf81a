"""DTensor parameters, as FSDP2 makes them: an operator takes the local part of each.

A sharding rule for the operators would not work. torch protects the placements of only the first
argument that an operator writes.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Does not import DTensor, which is slow: its users have loaded it."""
    return isinstance(tensor, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))


def check_sharding(op: str, i: int, param: Any, others: Mapping[str, Any]) -> None:
    """Refuse tensors that are not laid out over the processes like parameter ``i``.

    It reads only layouts, which all processes know, so either all of them refuse or none.
    """
    for name, other in others.items():
        if is_sharded(other) != is_sharded(param):
            came, own = ("a DTensor" if is_sharded(t) else "a plain tensor" for t in (other, param))
            raise TypeError(f"{op}: {name} of parameter {i} is {came}, the parameter {own}")
    if not is_sharded(param):
        return
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"{op}: parameter {i} must be sharded or replicated, got placements {param.placements}"
        )
    for name, other in others.items():
        for what in ("shape", "device_mesh", "placements"):
            if getattr(other, what) != getattr(param, what):
                raise ValueError(
                    f"{op}: {name} of parameter {i} has {what} {getattr(other, what)}, the "
                    f"parameter {getattr(param, what)}"
                )


def local(tensor: Any) -> Tensor:
    """The local part of a DTensor, which may be empty. Any other tensor comes back unchanged."""
    here: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return here


def count_writes(tensors: Iterable[Tensor]) -> None:
    """Count the writes of DTensors. A DTensor and its local part have separate versions."""
    torch.autograd.graph.increment_version([t for t in tensors if is_sharded(t)])
