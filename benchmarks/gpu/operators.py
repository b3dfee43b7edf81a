"""Runs and checks every operator, on inputs small enough for compute-sanitizer.

Only host-to-device copies have written them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.tasks import Task
from hullft_ops._ops import ops

Outputs = list[torch.Tensor]
Run = Callable[..., Outputs]

_REPEATS, _STEPS = 3, 30
_SIZES = (2500, 70_001)  # elements in a sweep; the second has a tail
_RESIDUAL, _VARIANCE = 4, 8  # places among the outputs of a selection


@dataclass(frozen=True)
class Shape:
    """The shape of a selection. It decides which path the kernels take."""

    batch: int
    candidates: int
    dim: int
    n_select: int


SMALL = Shape(3, 70, 36, 9)  # Gram matrices first
# More threads in a block, and rows that no load of 16 bytes is aligned to.
UNALIGNED = Shape(2, 300, 37, 9)
# Columns whenever an atom is picked, and the largest blocks.
COLUMNS = Shape(12, 1500, 36, 3)
# A query's state does not fit into shared memory, of an H100 or of any other card.
GLOBAL = Shape(1, 30_000, 8, 3)
_SHAPES = {
    "": SMALL,
    ", unaligned": UNALIGNED,
    ", columns": COLUMNS,
    ", global state": GLOBAL,
}


@dataclass
class Call:
    """One operator on one set of inputs.

    Attributes:
        run: calls it on tensors of the device; returns every tensor that it returned or wrote.
        inputs: tensors on the CPU, in the order that ``run`` takes them.
        check: takes what ``run`` returned, on the CPU, and what the CPU's kernels return; raises
            AssertionError if the first is wrong.
    """

    run: Run
    inputs: list[torch.Tensor]
    check: Callable[[Outputs, Outputs], None]

    def on(self, device: torch.device) -> list[torch.Tensor]:
        return [tensor.clone().to(device) for tensor in self.inputs]

    def assert_right(self, outputs: Outputs) -> None:
        on_cpu = [tensor.cpu() for tensor in outputs]
        self.check(on_cpu, self.run(*self.on(torch.device("cpu"))))


def tasks(device: torch.device, *, small: bool) -> Iterator[Task]:
    for name, call in calls(seed=0, small=small).items():
        yield name, partial(_check, call, device)


def _check(call: Call, device: torch.device, findings: Findings) -> None:
    call.assert_right(call.run(*call.on(device)))


def calls(seed: int, *, small: bool = False) -> dict[str, Call]:
    """Every operator by a readable name, with float32 and with float64 state.

    If ``small``, only of one dtype and shape.
    """
    named: dict[str, Call] = {}
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    for dtype in dtypes[:1] if small else dtypes:
        shapes = {"": SMALL} if small else _SHAPES
        for suffix, shape in shapes.items():
            pool, query = _problem(seed, shape, dtype)
            of_shape = _selections(pool, query, shape.n_select)
            if shape == SMALL:
                of_shape |= _others(pool, query, shape.n_select)
            for name, call in of_shape.items():
                named[f"{name} {dtype}{suffix}"] = call
        for size in _SIZES:
            named[f"adam_replay_ {dtype}, {size}"] = _adam(seed, dtype, size)
            named[f"grad_accumulate_ {dtype}, {size}"] = _accumulate(seed, dtype, size)
    return named


def _problem(
    seed: int, shape: Shape, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pools [batch, candidates, dim] around queries [batch, dim], of unit norm."""
    query = _normal(seed, torch.float64, shape.batch, shape.dim)
    noise = _normal(seed + 1, torch.float64, shape.batch, shape.candidates, shape.dim)
    pool = torch.nn.functional.normalize(query.unsqueeze(1) + 0.5 * noise, dim=-1)
    return pool.to(dtype), torch.nn.functional.normalize(query, dim=-1).to(dtype)


def _selections(pool: torch.Tensor, query: torch.Tensor, n: int) -> dict[str, Call]:
    """The operators whose path depends on the shape."""
    batch, count, _ = pool.shape
    embeddings = pool[0].contiguous()
    candidates = torch.arange(count).flip(0).repeat(batch, 1).contiguous()
    picked = embeddings.flip(0).expand_as(pool)
    of_pool, of_picked = [pool, query], [embeddings, candidates, query]

    def check(rows: torch.Tensor, compared: int | None) -> Callable[..., None]:
        return partial(_check_selection, rows, query, n, compared)

    named = {}
    for variant in ("vanilla", "away", "pairwise"):
        run = partial(_frank_wolfe, ops.fw_select, n, variant)
        # In pairwise steps rounding may choose between two atoms, and so decide where they end.
        compared = None if variant == "pairwise" else _RESIDUAL
        named[f"fw_select {variant}"] = Call(run, of_pool, check(pool, compared))
    named["fw_select_indexed"] = Call(
        partial(_indexed, ops.fw_select, n, max_iter=_STEPS),
        of_picked,
        check(picked, _RESIDUAL),
    )
    named["sift_select"] = Call(
        partial(_select, ops.sift_select, n), of_pool, check(pool, _VARIANCE)
    )
    named["sift_select_indexed"] = Call(
        partial(_indexed, ops.sift_select, n),
        of_picked,
        check(picked, _VARIANCE),
    )
    return named


def _frank_wolfe(
    operator: Run, n: int, variant: str, *tensors: torch.Tensor
) -> Outputs:
    return list(operator(*tensors, n, variant=variant, max_iter=_STEPS))


def _select(operator: Run, n: int, *tensors: torch.Tensor) -> Outputs:
    return list(operator(*tensors, n))


def _indexed(
    operator: Run,
    n: int,
    embeddings: torch.Tensor,
    candidates: torch.Tensor,
    query: torch.Tensor,
    **options: int,
) -> Outputs:
    return list(operator(embeddings, query, n, candidates=candidates, **options))


def _check_selection(
    pool: torch.Tensor,
    query: torch.Tensor,
    n: int,
    compared: int | None,
    outputs: Outputs,
    expected: Outputs,
) -> None:
    """The weights must be convex, residual and gap must match them, and counts must add up.

    The output at the place ``compared`` must also be the CPU's. Near atoms may change places.
    """
    indices, weights, counts, support_size, residual, gap = outputs[:6]
    within = _tolerance(pool)
    for b in range(len(query)):
        m = int(support_size[b])
        assert 1 <= m <= n
        w, x, q = weights[b, :m].double(), pool[b].double(), query[b].double()
        assert abs(float(w.sum()) - 1) <= within
        assert counts[b].min() >= 0
        assert counts[b].sum() == n
        current = w @ x[indices[b, :m]]
        off = q - current
        assert abs(float(off.norm() - residual[b])) <= within
        assert abs(float((x @ off).max() - off @ current - gap[b])) <= within
    if compared == _RESIDUAL and pool.dtype != torch.float64:
        within = 1e-4  # another atom may be as good
    if compared is not None:
        _check_close(within, [outputs[compared]], [expected[compared]])


def _others(pool: torch.Tensor, query: torch.Tensor, n: int) -> dict[str, Call]:
    batch, count, _ = pool.shape
    weights = torch.linspace(1, 0, count, dtype=torch.float64).repeat(batch, 1)
    check_all = partial(_check_close, _tolerance(pool))
    candidates = torch.arange(count).flip(0).repeat(batch, 1)
    return {
        "knn_select_indexed": Call(
            partial(_indexed, ops.knn_select, n),
            [pool[0].contiguous(), candidates, query],
            check_all,
        ),
        "knn_select": Call(
            partial(_select, ops.knn_select, n), [pool, query], check_all
        ),
        "integerize": Call(
            lambda p, q, w: [ops.integerize(p, q, w, n)],
            [pool, query, weights],
            check_all,
        ),
        "fw_lmo": Call(
            lambda p, q, c: list(ops.fw_lmo(p, q, c)),
            [pool, query, pool[:, 1].contiguous()],
            check_all,
        ),
    }


def _tolerance(pool: torch.Tensor) -> float:
    return 1e-9 if pool.dtype == torch.float64 else 2e-5


def _check_close(within: float, outputs: Outputs, expected: Outputs) -> None:
    for output, value in zip(outputs, expected, strict=True):
        off = (output.double() - value.double()).abs()
        largest = float((off / value.double().abs().clamp(min=1)).max())
        assert largest <= within, f"off by {largest:.3g}, at most {within:.3g} allowed"


def _adam(seed: int, dtype: torch.dtype, size: int) -> Call:
    """The step count is beside the parameter, as with ``capturable=True``."""
    parameter, gradient, moment, square = (
        _normal(seed + i, dtype, size) for i in range(4)
    )
    inputs = [parameter, gradient, moment, square.square(), torch.tensor(5.0)]

    def replay(*tensors: torch.Tensor) -> Outputs:
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
        )
        return [tensors[0], *tensors[2:]]

    return Call(replay, inputs, _within_rounding(dtype, _REPEATS))


def _accumulate(seed: int, dtype: torch.dtype, size: int) -> Call:
    def accumulate(cache: torch.Tensor, grad: torch.Tensor) -> Outputs:
        ops.grad_accumulate_([cache], [grad], alpha=0.5, beta=2.0)
        return [cache]

    inputs = [_normal(seed, dtype, size), _normal(seed + 1, dtype, size)]
    return Call(accumulate, inputs, _within_rounding(dtype, 2))


def _within_rounding(dtype: torch.dtype, steps: int) -> Callable[..., None]:
    """Each step rounds twice, by half an eps, on both sides."""
    return partial(_check_close, 2 * steps * torch.finfo(dtype).eps)


def _normal(seed: int, dtype: torch.dtype, *size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
