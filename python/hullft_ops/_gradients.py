"""What both the optimizer and the cache want of gradients."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hullft_ops import _checks


def check_dense(op: str, i: int, grad: object, advice: str) -> None:
    if not isinstance(grad, Tensor):
        raise _checks.no_tensor(op, f"the gradient of parameter {i}", grad)
    if grad.layout != torch.strided:
        raise TypeError(
            f"{op}: the gradient of parameter {i} must be dense, got layout {grad.layout}; {advice}"
        )


def check_storage(op: str, name: str, tensor: Tensor) -> None:
    """The dispatcher would take any operator on a meta tensor for a question about shapes."""
    if tensor.is_meta:
        raise ValueError(f"{op}: {name} has no storage, it is on the meta device")


def check_state(op: str, i: int, state: Mapping[str, object], names: Sequence[str]) -> None:
    """Of parameter ``i``; anybody may have changed it."""
    for name in names:
        if name not in state:
            raise ValueError(f"{op}: the state of parameter {i} has no {name}")
        tensor = state[name]
        if not isinstance(tensor, Tensor):
            raise _checks.no_tensor(op, f"{name} of parameter {i}", tensor)
        check_storage(op, f"{name} of parameter {i}", tensor)


def check_place(op: str, i: int, param: Tensor, grad: Tensor) -> None:
    check_storage(op, f"parameter {i}", param)
    if grad.device != param.device:
        raise ValueError(
            f"{op}: the gradient of parameter {i} is on {grad.device}, the parameter on "
            f"{param.device}"
        )


def by_device(rows: Sequence[tuple[Tensor, ...]]) -> Iterator[tuple[list[Tensor], ...]]:
    """The columns of the rows, for each device of the first column in turn."""
    devices: dict[torch.device, list[tuple[Tensor, ...]]] = {}
    for row in rows:
        devices.setdefault(row[0].device, []).append(row)
    for of_device in devices.values():
        yield tuple(list(column) for column in zip(*of_device, strict=True))
