"""One call of a function or an operator, drawn from bytes. See README.md."""

from typing import Any
from unittest.mock import patch

import torch
from drawn_values import FLOATS, SIZES, Bytes, filled, integer, integers, number, tensor

import hullft_ops

ALLOWED = (ValueError, TypeError, RuntimeError, MemoryError)
SCHEMAS = {
    "fw_select": "variant max_iter tol gap_tol swap_passes",
    "knn_select": "",
    "sift_select": "noise",
    "fw_lmo": "",
    "integerize": "swap_passes",
    "fw_select_indexed": "variant max_iter tol gap_tol swap_passes",
    "sift_select_indexed": "noise",
    "knn_select_indexed": "",
}
"""The options of each selection operator, in the order in which they are drawn."""


def option(data: Bytes, name: str) -> Any:
    if name == "variant":
        return data.pick(["vanilla", "away", "pairwise", "", "\0", 3])

    if name == "max_iter":
        return data.pick([5, 250, 0, -1, 2**31, "5"])

    if name == "swap_passes":
        return data.pick([2, 0, 1, -1, 2**31, None])
    return number(data)


def select(data: Bytes) -> None:
    name = data.pick(list(SCHEMAS))
    indexed = name.endswith("indexed")
    direct = data.below(2) == 1
    batch = data.pick(SIZES[:7])
    rows = data.pick(SIZES[:7])
    dim = data.pick(SIZES[:7])
    dtype = data.pick(FLOATS)
    # The operators want a batch, the functions take a query without one too.
    alone = not direct and data.below(3) == 2
    lead = [] if alone else [batch]
    shared = data.below(3) == 2 or indexed
    pool_shape = [rows, dim] if shared else [*lead, rows, dim]
    pool = tensor(data, pool_shape, dtype)
    query = tensor(data, [*lead, dim], dtype)
    sizes = None
    if not alone and data.below(3) == 0:
        sizes = integers(data, lead, 1, rows)

    arguments = [pool, query]
    if indexed:
        width = data.pick(SIZES[:7])
        arguments = [pool, integers(data, [*lead, width], 0, rows), query]
    elif name == "fw_lmo":
        arguments.append(tensor(data, [*lead, dim], dtype))
    elif name == "integerize":
        arguments.append(tensor(data, [*lead, rows], data.pick(FLOATS[:2])))

    if name != "fw_lmo":
        arguments.append(integer(data))

    options = {word: option(data, word) for word in SCHEMAS[name].split()}
    name_of_sizes = "support_sizes" if name == "integerize" else "pool_sizes"
    options[name_of_sizes] = sizes

    if not direct:
        getattr(hullft_ops, name)(*arguments, **options)
        return

    if indexed:
        options["candidates"] = arguments.pop(1)
    operator = getattr(torch.ops.hullft_ops, name.removesuffix("_indexed"))
    operator(*arguments, **options)


def shapes_of(data: Bytes, count: int) -> list[list[int]]:
    shapes = []
    for _ in range(count):
        dims = data.below(3)
        shapes.append([data.pick(SIZES) for _ in range(dims)])
    return shapes


def tensors(data: Bytes, shapes: list[list[int]], dtype: torch.dtype) -> Any:
    drawn = [tensor(data, shape, dtype) for shape in shapes]
    if data.rarely() and drawn:
        drawn[0] = drawn[-1]
    return drawn[:-1] if data.rarely() else drawn


def replay(data: Bytes) -> None:
    """Storages that are resized between the calls of an optimizer, and the operators themselves."""
    shapes = shapes_of(data, data.below(4))
    dtype = data.pick(FLOATS)
    grad_dtype = data.pick(FLOATS)
    ops = torch.ops.hullft_ops
    if data.below(2):
        caches = tensors(data, shapes, dtype)
        grads = tensors(data, shapes, grad_dtype)
        ops.grad_accumulate_(caches, grads, alpha=number(data), beta=number(data))
        return

    params = tensors(data, shapes, dtype)
    grads = tensors(data, shapes, grad_dtype)
    exp_avgs = tensors(data, shapes, dtype)
    exp_avg_sqs = tensors(data, shapes, dtype)
    lists = [params, grads, exp_avgs, exp_avg_sqs]

    steps = []
    for _ in shapes:
        steps_done = data.pick([0, 1, 1000, -1])
        steps.append(torch.tensor(float(steps_done)))

    if len(shapes) == 3:
        ops.adam_replay_check(*lists, steps, steps[:1])

    ops.adam_replay_(
        *lists,
        steps,
        repeats=data.pick([1, 2, 3, 0, -1, 2**70]),
        lr=number(data),
        beta1=data.pick([0.9, 0.0, 1.0, float("nan")]),
        beta2=data.pick([0.999, 0.0, 1.5]),
        eps=number(data),
        weight_decay=number(data),
        decoupled=bool(data.below(2)),
        maximize=bool(data.below(2)),
        seed=data.pick([None, None, 0, 7, -1, 2**63 - 1]),
    )


def optimize(data: Bytes) -> None:
    shapes = shapes_of(data, 1 + data.below(3))
    dtype = data.pick(FLOATS)
    params = [torch.nn.Parameter(filled(data, shape, dtype)) for shape in shapes]
    optimizer = hullft_ops.ReplayAdam(
        params,
        lr=number(data),
        weight_decay=number(data),
    )
    cache_dtype = data.pick([None, *FLOATS, torch.int64])
    cache = hullft_ops.GradientCache(params, dtype=cache_dtype)

    for _ in range(2):
        for param in params:
            param.grad = filled(data, list(param.shape), dtype)

        optimizer.step(repeats=data.pick([2, 1, 3, 0, -1, 2**70, None]))
        cache.accumulate(0, alpha=number(data), beta=number(data))
        cache.replay(0, optimizer, repeats=1)
        if data.below(3) == 2:
            victim = data.pick(params)
            state = optimizer.state[victim].values()
            held = [t for t in (victim, victim.grad, *state) if t is not None]
            shrunken = data.pick(held)
            shrunken.untyped_storage().resize_(data.below(9))

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
