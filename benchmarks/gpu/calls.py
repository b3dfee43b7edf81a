"""A call of every operator, with small inputs that only host-to-device copies have written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hullft_ops import reference
from hullft_ops._ops import ops

OPTIONS: dict[str, Any] = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "decoupled": False,
    "maximize": False,
}
_REPEATS, _STEPS = 3, 30


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
_MOST_CHECKED = (
    1500  # candidates that a reference in plain torch compares with each other
)
_SIZES = (2500, 70_001)  # elements in a sweep; the second has a tail


@dataclass
class Call:
    """One operator on one set of inputs.

    Attributes:
        run: calls it on tensors of the device; returns every tensor that it returned or wrote.
        check: takes these tensors on the CPU; raises AssertionError if they are wrong.
        inputs: name to tensor on the CPU, in the order that ``run`` takes them.
    """

    run: Callable[..., list[torch.Tensor]]
    check: Callable[[list[torch.Tensor]], None]
    inputs: dict[str, torch.Tensor]

    def on(self, device: torch.device) -> list[torch.Tensor]:
        return [tensor.clone().to(device) for tensor in self.inputs.values()]


def problem(seed: int, shape: Shape = SMALL) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 pools [batch, candidates, dim] around queries [batch, dim], of unit norm."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(
        shape.batch, shape.dim, generator=generator, dtype=torch.float64
    )
    size = (shape.batch, shape.candidates, shape.dim)
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    pool = query.unsqueeze(1) + 0.5 * noise
    return pool / pool.norm(dim=-1, keepdim=True), query / query.norm(
        dim=-1, keepdim=True
    )


def calls(seed: int) -> dict[str, Call]:
    """Every operator by a readable name, with float32 and with float64 state."""
    shapes = {
        "": SMALL,
        ", unaligned": UNALIGNED,
        ", columns": COLUMNS,
        ", global state": GLOBAL,
    }
    made: dict[str, Call] = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for suffix, shape in shapes.items():
            pool, query = (tensor.to(dtype) for tensor in problem(seed, shape))
            found = _selection(pool, query, shape.n_select)
            if shape == SMALL:
                found |= _others(pool, query, shape.n_select)
            made |= {f"{name} {dtype}{suffix}": call for name, call in found.items()}
        for size in _SIZES:
            made[f"adam_replay_ {dtype}, {size}"] = _adam(seed, dtype, size)
            made[f"grad_accumulate_ {dtype}, {size}"] = _accumulate(seed, dtype, size)
    return made


def _selection(pool: torch.Tensor, query: torch.Tensor, n: int) -> dict[str, Call]:
    """The operators whose path depends on the shape."""
    batch, count, _ = pool.shape
    candidates = torch.arange(count).flip(0).repeat(batch, 1).contiguous()
    both = {"pool": pool, "query": query}
    indexed = {
        "embeddings": pool[0].contiguous(),
        "candidates": candidates,
        "query": query,
    }
    picked = pool[0].flip(0).expand_as(pool)

    def frank_wolfe(variant: str) -> Call:
        return Call(
            lambda p, q: list(ops.fw_select(p, q, n, variant=variant, max_iter=_STEPS)),
            lambda out: _check_frank_wolfe(pool, query, n, variant, out),
            both,
        )

    return {
        **{f"fw_select {v}": frank_wolfe(v) for v in ("vanilla", "away", "pairwise")},
        "fw_select_indexed": Call(
            lambda p, c, q: list(ops.fw_select_indexed(p, c, q, n, max_iter=_STEPS)),
            lambda out: _check_frank_wolfe(picked, query, n, "vanilla", out),
            indexed,
        ),
        "sift_select": Call(
            lambda p, q: list(ops.sift_select(p, q, n)),
            lambda out: _check_sift(pool, query, n, out),
            both,
        ),
        "sift_select_indexed": Call(
            lambda p, c, q: list(ops.sift_select_indexed(p, c, q, n)),
            lambda out: _check_sift(picked, query, n, out),
            indexed,
        ),
    }


def _others(pool: torch.Tensor, query: torch.Tensor, n: int) -> dict[str, Call]:
    batch, count, _ = pool.shape
    weights = torch.linspace(1, 0, count, dtype=torch.float64).repeat(batch, 1)
    both = {"pool": pool, "query": query}
    return {
        "knn_select": Call(
            lambda p, q: list(ops.knn_select(p, q, n)),
            lambda out: _check_knn(pool, query, n, out),
            both,
        ),
        "integerize": Call(
            lambda p, q, w: [ops.integerize(p, q, w, n)],
            lambda out: _check_counts(pool, query, weights, n, out[0]),
            {**both, "weights": weights},
        ),
        "fw_lmo": Call(
            lambda p, q, c: list(ops.fw_lmo(p, q, c)),
            lambda out: _check_lmo(pool, query, out),
            {**both, "current": pool[:, 1].contiguous()},
        ),
    }


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 2e-5


def _check_selection(
    pool: torch.Tensor, query: torch.Tensor, n: int, out: list[torch.Tensor]
) -> None:
    """The weights must be convex, residual and gap must match them, and counts must add up."""
    indices, weights, counts, support_size, residual, gap, _ = out
    tolerance = _tolerance(pool.dtype)
    for b in range(len(query)):
        m = int(support_size[b])
        assert 1 <= m <= n
        w, x, q = weights[b, :m].double(), pool[b].double(), query[b].double()
        assert abs(float(w.sum()) - 1) <= tolerance
        assert counts[b].min() >= 0
        assert counts[b].sum() == n
        current = w @ x[indices[b, :m]]
        off = q - current
        assert abs(float(off.norm() - residual[b])) <= tolerance
        assert abs(float((x @ off).max() - off @ current - gap[b])) <= tolerance


def _check_frank_wolfe(
    pool: torch.Tensor,
    query: torch.Tensor,
    n: int,
    variant: str,
    out: list[torch.Tensor],
) -> None:
    """Must come as near to the query as the definition. Atoms may change places; the residual not.

    In pairwise steps rounding may choose between two atoms, and so decide where the steps end.
    """
    _check_selection(pool, query, n, out)
    # The reference of away steps needs a matrix of all candidates by all candidates.
    if variant == "pairwise" or (variant == "away" and pool.shape[1] > _MOST_CHECKED):
        return
    for b in range(len(query)):
        expected = reference.fw_select(
            pool[b], query[b], n, variant=variant, max_iter=_STEPS
        )
        within = 1e-9 if pool.dtype == torch.float64 else 1e-4
        assert abs(float(out[4][b]) - expected.residual) <= within


def _check_knn(
    pool: torch.Tensor, query: torch.Tensor, n: int, out: list[torch.Tensor]
) -> None:
    _check_selection(pool, query, n, out)
    for b in range(len(query)):
        expected = reference.knn_select(pool[b], query[b], n)
        assert out[0][b].tolist() == expected.indices.tolist()


def _check_sift(
    pool: torch.Tensor, query: torch.Tensor, n: int, out: list[torch.Tensor]
) -> None:
    """Every pick must be the best after the earlier ones, up to rounding. The rest follows."""
    picks, variance = out[7:]
    _check_selection(pool, query, n, out[:7])
    for b in range(len(query)):
        assert torch.equal(
            out[0][b].repeat_interleave(out[2][b]).sort().values, picks[b].sort().values
        )
        some = range(0, pool.shape[1], -(-pool.shape[1] // _MOST_CHECKED))
        compared = torch.tensor(sorted({*some, *picks[b].tolist()}))
        x, q = pool[b, compared].double(), query[b].double()[None]
        places = torch.searchsorted(compared, picks[b]).tolist()
        for i, pick in enumerate(places):
            left = reference.variance_after(x, q, places[:i], 0.01)
            assert left[pick] - left.min() <= _tolerance(pool.dtype)
            assert abs(float(left[pick] - variance[b, i])) <= _tolerance(pool.dtype)


def _check_counts(
    pool: torch.Tensor,
    query: torch.Tensor,
    weights: torch.Tensor,
    n: int,
    counts: torch.Tensor,
) -> None:
    for b in range(len(query)):
        expected = reference.integerize(pool[b], query[b], weights[b], n)
        assert counts[b].tolist() == expected.tolist()


def _check_lmo(
    pool: torch.Tensor, query: torch.Tensor, out: list[torch.Tensor]
) -> None:
    for b in range(len(query)):
        expected = reference.fw_lmo(pool[b], query[b], pool[b, 1])
        assert int(out[0][b]) == expected.vertex
        for found, wanted in zip(out[1:], expected[1:], strict=True):
            assert abs(float(found[b]) - wanted) <= _tolerance(pool.dtype)


def _normal(seed: int, dtype: torch.dtype, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def _close(
    found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, steps: int
) -> None:
    """Compare within the rounding of ``steps``. Each step rounds twice, by half an eps."""
    relative = steps * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=relative, atol=relative)


def _adam(seed: int, dtype: torch.dtype, size: int) -> Call:
    """The step count is beside the parameter, as with ``capturable=True``."""
    inputs = {
        "param": _normal(seed, dtype, size),
        "grad": _normal(seed + 1, dtype, size),
        "exp_avg": _normal(seed + 2, dtype, size),
        "exp_avg_sq": _normal(seed + 3, dtype, size).square(),
        "step": torch.tensor(5.0),
    }

    def replay(*tensors: torch.Tensor) -> list[torch.Tensor]:
        ops.adam_replay_(*([tensor] for tensor in tensors), repeats=_REPEATS, **OPTIONS)
        return [tensors[0], *tensors[2:]]

    def check(out: list[torch.Tensor]) -> None:
        lists = ([tensor] for tensor in inputs.values())
        expected = reference.adam_replay(*lists, repeats=_REPEATS, **OPTIONS)
        for found, wanted in zip(out, expected, strict=True):
            _close(found, wanted[0], dtype, _REPEATS)

    return Call(replay, check, inputs)


def _accumulate(seed: int, dtype: torch.dtype, size: int) -> Call:
    inputs = {
        "cache": _normal(seed, dtype, size),
        "grad": _normal(seed + 1, dtype, size),
    }

    def accumulate(cache: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
        ops.grad_accumulate_([cache], [grad], alpha=0.5, beta=2.0)
        return [cache]

    def check(out: list[torch.Tensor]) -> None:
        wanted = 0.5 * inputs["grad"].double() + 2 * inputs["cache"].double()
        _close(out[0], wanted, dtype, 2)

    return Call(accumulate, check, inputs)
