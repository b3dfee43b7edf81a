"""One call of a function or an operator, drawn from bytes. See README.md."""

from collections.abc import Sequence
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch

import hullft_ops

T = TypeVar("T")
ALLOWED = (ValueError, TypeError, RuntimeError, MemoryError)
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OTHERS = [torch.int64, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn]
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
# The norm of a tensor's values for some of the seeds that they are drawn with.
SCALES = dict(
    enumerate([1e-300, 1e-160, 1e-40, 1e19, 1e38, 1e77, 1e154, 1e300], start=248)
)
OBJECTS = [None, 3, 1.5, "pool", [[1.0]], np.ones((2, 3), np.float32), torch.Size([2])]


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
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()
    values *= SCALES.get(seed, 1.0)
    if values.numel() and data.rarely():
        special = data.pick(
            [float("nan"), float("inf"), -float("inf"), 1e38, 1e-45, 0.0]
        )
        values.view(-1)[data.below(values.numel())] = special
    return values.to(dtype)


def gaps(t: torch.Tensor, data: Bytes) -> torch.Tensor:
    wide = (
        torch.zeros(*t.shape[:-1], 2 * t.shape[-1] + 1, dtype=t.dtype) if t.dim() else t
    )
    return wide[..., 1::2].copy_(t) if t.dim() else t


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
    return t.narrow(axis, 0, 1).expand(shape) if t.dim() else t.expand(shape)


VIEWS: list[Any] = [
    lambda t, data: t,
    gaps,
    lambda t, data: t.mT.contiguous().mT if t.dim() > 1 else t,
    lambda t, data: t[:1].expand(t.shape) if t.dim() and len(t) else t,
    lambda t, data: torch.from_numpy(t.numpy()) if t.dtype == torch.float32 else t,
    lambda t, data: t.flip(0) if t.dim() else t,
    unaligned,
    shrunk,
    lambda t, data: t.to("meta"),
    lambda t, data: t.to_sparse() if t.dim() and t.is_floating_point() else t,
    lambda t, data: t.requires_grad_() if t.is_floating_point() else t,
    lambda t, data: torch._neg_view(t) if t.is_floating_point() else t,
    huge,
    lambda t, data: t.unsqueeze(0),
    lambda t, data: t[..., :-1] if t.dim() else t,
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
    view = data.pick(VIEWS) if data.below(3) == 2 else VIEWS[0]
    return view(filled(data, shape, dtype), data)


def integers(data: Bytes, shape: list[int], first: int, count: int) -> Any:
    """From ``first`` on, mostly. torch itself must read nothing of a view: it may be shrunk."""
    generator = torch.Generator().manual_seed(data.below(256))
    values = torch.randint(first, first + max(count, 1), shape, generator=generator)
    if values.numel() and data.rarely():
        values.view(-1)[0] = data.pick(
            [first - 1, -1, first + count, 2**31, 2**62, -(2**63)]
        )
    view = data.pick(VIEWS) if data.rarely() else VIEWS[0]
    return view(values, data)


def integer(data: Bytes) -> Any:
    return data.pick(INTEGERS) if data.rarely() else data.pick(INTEGERS[:4])


def number(data: Bytes) -> Any:
    return data.pick(NUMBERS) if data.rarely() else data.pick(NUMBERS[:3])


def select(data: Bytes) -> None:
    name = data.pick(
        ["fw_select", "knn_select", "sift_select", "fw_lmo", "integerize", "fw_select_indexed",
         "sift_select_indexed"]
    )  # fmt: skip
    direct = data.below(2) == 1
    batch, rows, dim = (data.pick(SIZES[:7]) for _ in range(3))
    dtype = data.pick(FLOATS)
    # The operators want a batch, the functions take a query without one too.
    alone = not direct and data.below(3) == 2
    lead = [] if alone else [batch]
    shared = data.below(3) == 2 or name.endswith("indexed")
    pool = tensor(data, [rows, dim] if shared else [*lead, rows, dim], dtype)
    query = tensor(data, [*lead, dim], dtype)
    arguments = [pool, query]
    sizes = None if alone or data.below(3) else integers(data, lead, 1, rows)
    width = data.pick(SIZES[:7]) if name.endswith("indexed") else rows
    if name.endswith("indexed"):
        arguments = [pool, integers(data, [*lead, width], 0, rows), query]
    elif name == "fw_lmo":
        arguments.append(tensor(data, [*lead, dim], dtype))
    elif name == "integerize":
        arguments.append(tensor(data, [*lead, rows], data.pick(FLOATS[:2])))
    options: dict[str, Any] = {}
    if name != "fw_lmo":
        arguments.append(integer(data))
    if name.startswith("fw_select"):
        options["variant"] = data.pick(["vanilla", "away", "pairwise", "", "\0", 3])
        options["max_iter"] = data.pick([5, 250, 0, -1, 2**31, "5"])
        options["tol"], options["gap_tol"] = number(data), number(data)
    if name.startswith("sift"):
        options["noise"] = number(data)
    if name == "integerize" or name.startswith("fw_select"):
        options["swap_passes"] = data.pick([2, 0, 1, -1, 2**31, None])
    options["support_sizes" if name == "integerize" else "pool_sizes"] = sizes
    function = getattr(torch.ops.hullft_ops if direct else hullft_ops, name)
    function(*arguments, **options)


def tensors(data: Bytes, shapes: list[list[int]], dtype: torch.dtype) -> Any:
    found = [tensor(data, shape, dtype) for shape in shapes]
    if data.rarely() and found:
        found[0] = found[-1]
    return found[:-1] if data.rarely() else found


def replay(data: Bytes) -> None:
    """Storages that are resized between the calls of an optimizer, and the operators themselves."""
    shapes = [
        [data.pick(SIZES) for _ in range(data.below(3))] for _ in range(data.below(4))
    ]
    dtype, grad_dtype = data.pick(FLOATS), data.pick(FLOATS)
    ops = torch.ops.hullft_ops
    if data.below(2):
        caches, grads = tensors(data, shapes, dtype), tensors(data, shapes, grad_dtype)
        ops.grad_accumulate_(caches, grads, alpha=number(data), beta=number(data))
        return
    lists = [tensors(data, shapes, dtype if i != 1 else grad_dtype) for i in range(4)]
    steps = [torch.tensor(float(data.pick([0, 1, 1000, -1]))) for _ in shapes]
    if len(shapes) == 3:
        ops.adam_replay_check(*lists, steps, steps[:1])
    ops.adam_replay_(
        *lists, steps, repeats=data.pick([1, 2, 3, 0, -1, 2**70]), lr=number(data),
        beta1=data.pick([0.9, 0.0, 1.0, float("nan")]), beta2=data.pick([0.999, 0.0, 1.5]),
        eps=number(data), weight_decay=number(data), decoupled=bool(data.below(2)),
        maximize=bool(data.below(2)), seed=data.pick([None, None, 0, 7, -1, 2**63 - 1]),
    )  # fmt: skip


def optimize(data: Bytes) -> None:
    shapes = [
        [data.pick(SIZES) for _ in range(data.below(3))]
        for _ in range(1 + data.below(3))
    ]
    dtype = data.pick(FLOATS)
    params = [torch.nn.Parameter(filled(data, shape, dtype)) for shape in shapes]
    optimizer = hullft_ops.ReplayAdam(
        params, lr=number(data), weight_decay=number(data)
    )
    cache = hullft_ops.GradientCache(
        params, dtype=data.pick([None, *FLOATS, torch.int64])
    )
    for _ in range(2):
        for param in params:
            param.grad = filled(data, list(param.shape), dtype)
        optimizer.step(repeats=data.pick([2, 1, 3, 0, -1, 2**70, None]))
        cache.accumulate(0, alpha=number(data), beta=number(data))
        cache.replay(0, optimizer, repeats=1)
        if data.below(3) == 2:
            victim = data.pick(params)
            held = [victim, victim.grad, *optimizer.state[victim].values()]
            data.pick([t for t in held if t is not None]).untyped_storage().resize_(
                data.below(9)
            )
        if data.rarely():
            params[0].data = torch.zeros(data.pick(SIZES))


def call(data: bytes) -> str:
    """Makes the call; the name of what it raised, of what it may.

    torch prints every argument of a call that does not fit a schema, and ends the process where a
    tensor's storage was shrunk. That is before any code of this package: nothing is printed here.
    """
    decisions = Bytes(data)
    what = decisions.pick([select, select, select, replay, optimize])
    try:
        with patch.object(torch.Tensor, "__repr__", lambda self, **_: "a tensor"):
            what(decisions)
    except ALLOWED as error:
        return type(error).__name__
    return ""
