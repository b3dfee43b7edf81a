"""A call of every operator, on inputs small enough for compute-sanitizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import hullft_ops
from hullft_ops._ops import ops

Outputs = Sequence[torch.Tensor]

_STEPS = 30
# Rows of a pool and the queries that share it: their products are panels below its Gram matrix.
_SHARED = (200, 1000)
_REPEATS = 3
_SWEEP_SIZES = (2500, 70_001)  # the second has a tail
# Batch, candidates, dim and n_select decide which path the kernels take.
_SHAPES = {
    "": (3, 70, 36, 9),  # Gram matrices first, a block for each tile
    ", runs": (64, 70, 100, 9),  # of a tile a warp; bfloat16 rows are not aligned
    ", long runs": (40, 300, 52, 9),  # of four
    ", unaligned": (2, 300, 37, 9),  # more threads in a block, no loads of 16 bytes
    ", columns": (12, 1500, 36, 3),  # when an atom is picked; the largest blocks
    ", global state": (1, 30_000, 8, 3),  # too large for any card's shared memory
    ", rounds": (1, 12_000, 64, 3),  # the whole device computes columns
    ", long rows": (1, 6, 1_000_004, 9),  # split over the device
}
# Queries, candidates of each, and embeddings: Gram matrices of two parts of the batch.
_MANY = (10_000, 128, 200)


@dataclass(frozen=True)
class Call:
    """One operator on one set of inputs.

    Attributes:
        run: calls it on tensors of a device; returns every tensor that it returned or wrote.
        inputs: tensors on the CPU, in the order that ``run`` takes them.
        tolerance: how far outputs may be from the CPU's, relative where those are above 1.
    """

    run: Callable[..., Outputs]
    inputs: list[torch.Tensor]
    tolerance: float

    def on(self, device: torch.device) -> list[torch.Tensor]:
        return [tensor.clone().to(device) for tensor in self.inputs]


def calls(seed: int) -> dict[str, Call]:
    """Every operator by a readable name, with float32 and with float64 state."""
    shared = [_normal(seed + i, torch.float32, n, 20) for i, n in enumerate(_SHARED)]
    select = partial(hullft_ops.fw_select, n_select=9, max_iter=_STEPS)
    named = {"fw_select float32, shared": Call(select, shared, 2e-5)}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for suffix, (batch, candidates, dim, n_select) in _SHAPES.items():
            pool, query = _problem(seed, batch, candidates, dim, dtype)
            of_shape = _selections(pool, query, n_select)
            if not suffix:
                of_shape |= _others(pool, query, n_select)
            for name, call in of_shape.items():
                named[f"{name} {dtype}{suffix}"] = call
        for name, call in _many(seed, dtype).items():
            named[f"{name} {dtype}, many"] = call
        for size in _SWEEP_SIZES:
            for name, call in _sweeps(seed, dtype, size).items():
                named[f"{name} {dtype}, {size}"] = call
    return named


def _problem(
    seed: int, batch: int, candidates: int, dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pools [batch, candidates, dim] around queries [batch, dim], of unit norm."""
    query = _normal(seed, torch.float64, batch, dim)
    noise = _normal(seed + 1, torch.float64, batch, candidates, dim)
    pool = torch.nn.functional.normalize(query.unsqueeze(1) + 0.5 * noise, dim=-1)
    return pool.to(dtype), torch.nn.functional.normalize(query, dim=-1).to(dtype)


def _selections(pool: torch.Tensor, query: torch.Tensor, n: int) -> dict[str, Call]:
    """The operators whose path depends on the shape."""
    rows, picked = [pool, query], _picked(pool, query)
    tolerance = _tolerance(pool.dtype)
    options: dict[str, Any] = {"n_select": n, "max_iter": _STEPS}
    sift = partial(hullft_ops.sift_select, n_select=n)
    named = {
        "fw_select candidates": Call(
            _of_candidates(partial(hullft_ops.fw_select, **options)), picked, tolerance
        ),
        "sift_select": Call(sift, rows, tolerance),
        "sift_select candidates": Call(_of_candidates(sift), picked, tolerance),
    }
    for variant in ("vanilla", "corrective"):
        run = partial(hullft_ops.fw_select, variant=variant, **options)
        named[f"fw_select {variant}"] = Call(run, rows, tolerance)
    for solve in (hullft_ops.simplex_lstsq, hullft_ops.nnls):
        named[solve.__name__] = Call(solve, rows, tolerance)
        if pool.dtype != torch.bfloat16:
            backward = partial(_gradients, solve)
            named[f"{solve.__name__} backward"] = Call(backward, rows, tolerance)
    return named


def _gradients(solve: Callable[..., Outputs], *tensors: torch.Tensor) -> Outputs:
    """Of pool and query, by a sum of weights that has a gradient on the simplex."""
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    weights = solve(*inputs)[0]
    slopes = torch.linspace(0, 1, weights.shape[1], device=weights.device)
    return torch.autograd.grad((weights * slopes).sum(), inputs)


def _many(seed: int, dtype: torch.dtype) -> dict[str, Call]:
    """Small problems that have one solution: rounding may send other steps another way."""
    batch, candidates, rows = _MANY
    pool, query = _problem(seed, 1, rows, 16, dtype)
    queries = query + 0.2 * _normal(seed + 2, dtype, batch, 16)
    generator = torch.Generator().manual_seed(seed)
    picked = torch.rand(batch, rows, generator=generator).argsort()[:, :candidates]
    correct = partial(hullft_ops.fw_select, n_select=candidates, variant="corrective")
    shared = [pool[0], queries]
    return {
        "fw_select candidates corrective": Call(
            _of_candidates(correct), [pool[0], picked, queries], _tolerance(dtype)
        ),
        "simplex_lstsq": Call(hullft_ops.simplex_lstsq, shared, _tolerance(dtype)),
        "nnls": Call(hullft_ops.nnls, shared, _tolerance(dtype)),
    }


def _others(pool: torch.Tensor, query: torch.Tensor, n: int) -> dict[str, Call]:
    batch, candidates, _ = pool.shape
    tolerance = _tolerance(pool.dtype)
    weights = torch.linspace(1, 0, candidates, dtype=torch.float64).repeat(batch, 1)

    def integerize(x: torch.Tensor, q: torch.Tensor, w: torch.Tensor) -> Outputs:
        return [hullft_ops.integerize(x, q, w, n)]

    nearest = partial(hullft_ops.knn_select, n_select=n)
    current = pool[:, 1].contiguous()
    return {
        "knn_select": Call(nearest, [pool, query], tolerance),
        "knn_select candidates": Call(
            _of_candidates(nearest), _picked(pool, query), tolerance
        ),
        "integerize": Call(integerize, [pool, query, weights], tolerance),
        "fw_lmo": Call(hullft_ops.fw_lmo, [pool, query, current], tolerance),
    }


def _of_candidates(select: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """That selection of a pool, candidates and queries."""

    def run(pool: torch.Tensor, rows: torch.Tensor, query: torch.Tensor) -> Outputs:
        return select(pool, query, candidates=rows)

    return run


def _picked(pool: torch.Tensor, query: torch.Tensor) -> list[torch.Tensor]:
    """Embeddings, candidates and queries: each pool is the rows of the first, reversed."""
    batch, candidates, _ = pool.shape
    rows = torch.arange(candidates).flip(0).repeat(batch, 1)
    return [pool[0].contiguous(), rows, query]


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 2e-5


def _sweeps(seed: int, dtype: torch.dtype, size: int) -> dict[str, Call]:
    """The step count is beside the parameter, as with ``capturable=True``."""
    parameter, gradient, moment, square = (
        _normal(seed + i, dtype, size) for i in range(4)
    )
    tensors = [parameter, gradient, moment, square.square(), torch.tensor(5.0)]
    half = torch.full((1,), 0.5, dtype=torch.float64)

    def adam_replay(*tensors: torch.Tensor) -> Outputs:
        ops.adam_replay_(
            *([tensor] for tensor in tensors),
            repeats=_REPEATS,
            lr=1e-3,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.01,
            decoupled=False,
            maximize=False,
            lr_scales=half,
        )
        return [tensors[0], *tensors[2:]]

    def accumulate(cache: torch.Tensor, grad: torch.Tensor) -> Outputs:
        ops.grad_accumulate_([cache], [grad], alpha=0.5, beta=2.0)
        return [cache]

    # A step rounds twice, by half an eps, on both sides.
    tolerance = 2 * _REPEATS * torch.finfo(dtype).eps
    return {
        "adam_replay_": Call(adam_replay, tensors, tolerance),
        "grad_accumulate_": Call(accumulate, [parameter, gradient], tolerance),
    }


def _normal(seed: int, dtype: torch.dtype, *size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
