"""Tensors and numbers drawn from bytes: mostly good ones. See README.md."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
FLOATS = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
]
OTHERS = [
    torch.int64,
    torch.int32,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]
SIZES = [1, 2, 3, 5, 8, 17, 33, 0]
INTEGERS = [
    3,
    1,
    2,
    7,
    0,
    -1,
    40,
    2**31 - 1,
    2**31,
    2**40,
    2**63 - 1,
    2**70,
    2.0,
    True,
    None,
    "3",
]
NUMBERS = [
    1e-5,
    0.0,
    1.0,
    1e30,
    -1.0,
    float("nan"),
    float("inf"),
    1,
    True,
    None,
    "1",
    1e308,
    1e-310,
]
SCALES = {
    248: 1e-300,
    249: 1e-160,
    250: 1e-40,
    251: 1e19,
    252: 1e38,
    253: 1e77,
    254: 1e154,
    255: 1e300,
}
"""The norm of a tensor's values for some of the seeds that they are drawn with."""
SPECIAL = [
    float("nan"),
    float("inf"),
    -float("inf"),
    1e38,
    1e-45,
    0.0,
]
OBJECTS = [
    None,
    3,
    1.5,
    "pool",
    [[1.0]],
    np.ones((2, 3), np.float32),
    torch.Size([2]),
]


class Bytes:
    """Reads decisions off a string; past its end every decision is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, n: int) -> int:
        value = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return value % n

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def rarely(self) -> bool:
        return self.below(16) == 15


def filled(data: Bytes, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    seed = data.below(256)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).double()
    values *= SCALES.get(seed, 1.0)
    if values.numel() and data.rarely():
        special = data.pick(SPECIAL)
        values.view(-1)[data.below(values.numel())] = special
    return values.to(dtype)


def gaps(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    if t.dim() == 0:
        return t

    wide = torch.zeros(*t.shape[:-1], 2 * t.shape[-1] + 1, dtype=t.dtype)
    return wide[..., 1::2].copy_(t)


def shrunk(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    t = t.clone()
    t.untyped_storage().resize_(data.pick([0, 1, 8, 64]))
    return t


def unaligned(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    """Memory of NumPy that begins anywhere."""
    if t.numel() == 0 or t.dtype not in (torch.float32, torch.float64, torch.int64):
        return t

    raw = b"\0" + t.numpy().tobytes() + bytes(8)
    whole = torch.frombuffer(bytearray(raw), dtype=t.dtype, offset=1, count=t.numel())
    return whole.view(t.shape)


def huge(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    shape = list(t.shape) or [1]
    axis = data.below(len(shape))
    if 0 in shape:
        return t

    shape[axis] = data.pick([2**20, 2**31 - 1, 2**31, 2**33, 2**40])
    if t.dim():
        t = t.narrow(axis, 0, 1)
    return t.expand(shape)


def unchanged(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return t


def columns_first(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return t.mT.contiguous().mT if t.dim() > 1 else t


def expanded(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return t[:1].expand(t.shape) if t.dim() and len(t) else t


def of_numpy(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return torch.from_numpy(t.numpy()) if t.dtype == torch.float32 else t


def backwards(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return t.flip(0) if t.dim() else t


def on_meta(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return t.to("meta")


def sparse(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return t.to_sparse() if t.dim() and t.is_floating_point() else t


def with_grad(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return t.requires_grad_() if t.is_floating_point() else t


def negated(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return torch._neg_view(t) if t.is_floating_point() else t


def with_a_batch(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return t.unsqueeze(0)


def shorter(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    return t[..., :-1] if t.dim() else t


VIEWS = [
    unchanged,
    gaps,
    columns_first,
    expanded,
    of_numpy,
    backwards,
    unaligned,
    shrunk,
    on_meta,
    sparse,
    with_grad,
    negated,
    huge,
    with_a_batch,
    shorter,
]


def tensor(data: Bytes, shape: list[int], dtype: torch.dtype) -> Any:
    """Of that shape and dtype, mostly."""
    if data.rarely():
        return data.pick(OBJECTS)

    if data.rarely():
        dtype = data.pick(FLOATS + OTHERS)

    if shape and data.rarely():
        shape = list(shape)
        shape[data.below(len(shape))] = data.pick(SIZES)

    view = data.pick(VIEWS) if data.below(3) == 2 else unchanged
    return view(filled(data, shape, dtype), data)


def integers(data: Bytes, shape: list[int], first: int, count: int) -> Any:
    """From ``first`` on, mostly. torch itself must read nothing of a view: it may be shrunk."""
    generator = torch.Generator().manual_seed(data.below(256))
    values = torch.randint(first, first + max(count, 1), shape, generator=generator)
    if values.numel() and data.rarely():
        outside = [first - 1, -1, first + count, 2**31, 2**62, -(2**63)]
        values.view(-1)[0] = data.pick(outside)

    view = data.pick(VIEWS) if data.rarely() else unchanged
    return view(values, data)


def integer(data: Bytes) -> Any:
    return data.pick(INTEGERS) if data.rarely() else data.pick(INTEGERS[:4])


def number(data: Bytes) -> Any:
    return data.pick(NUMBERS) if data.rarely() else data.pick(NUMBERS[:3])
