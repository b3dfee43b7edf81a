"""Selection problems as hypothesis draws them, and every selection operator by one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st

import hullft_ops
from problems import DTYPES, METHODS, make_problem, select

KINDS = [
    "near",
    "far",
    "duplicates",
    "query in pool",
    "zero rows",
    "zero query",
    "tiny",
    "wide",
]


@dataclass(frozen=True)
class Problem:
    """A batch of B problems; what an operator does not take, it leaves alone."""

    pool: torch.Tensor
    """[B, K, d]"""
    query: torch.Tensor
    """[B, d]"""
    current: torch.Tensor
    """[B, d], a point of the hull up to rounding: of ``fw_lmo``."""
    weights: torch.Tensor
    """float64 [B, K], some of them 0 or negative: of ``integerize``."""
    n_select: int
    """At most K."""
    max_iter: int
    noise: float = 0.01

    @property
    def batch(self) -> int:
        return len(self.query)

    @property
    def candidates(self) -> int:
        return self.pool.shape[1]

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Problem":
        """With every tensor that has a last dimension d replaced."""
        return replace(
            self,
            pool=change(self.pool),
            query=change(self.query),
            current=change(self.current),
        )

    def with_rows(self, order: torch.Tensor) -> "Problem":
        """The candidates in another order, or some of them more than once."""
        return replace(self, pool=self.pool[:, order], weights=self.weights[:, order])

    def of_query(self, b: int, size: int | None = None) -> "Problem":
        """Without a batch, its pool cut to ``size`` rows."""
        return replace(
            self,
            pool=self.pool[b, :size],
            query=self.query[b],
            current=self.current[b],
            weights=self.weights[b, :size],
        )


def build(
    seed: int,
    batch: int,
    candidates: int,
    dim: int,
    dtype: torch.dtype,
    kind: str = "near",
    n_select: int = 5,
    max_iter: int = 30,
) -> Problem:
    spread = {"wide": 3.0, "tiny": 1e-3}.get(kind, 0.5)
    pool, query = make_problem(seed, batch, candidates, dim, spread=spread)
    generator = torch.Generator().manual_seed(seed + 1)
    if kind == "far":
        query = query * 5
    elif kind == "duplicates":
        pool = pool[:, torch.arange(candidates) // 3 * 3]
    elif kind == "query in pool":
        query = pool[:, candidates // 2].clone()
    elif kind == "zero rows":
        pool[:, ::2] = 0
    elif kind == "zero query":
        query = torch.zeros_like(query)

    weights = (
        torch.rand(batch, candidates, generator=generator, dtype=torch.float64) - 0.2
    )
    convex = torch.rand(batch, candidates, generator=generator, dtype=torch.float64)
    convex = convex / convex.sum(-1, keepdim=True)
    current = torch.einsum("bkd,bk->bd", pool, convex)
    pool, query, current = (tensor.to(dtype) for tensor in (pool, query, current))
    return Problem(pool, query, current, weights, min(n_select, candidates), max_iter)


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    kinds: Sequence[str] = KINDS,
    candidates: tuple[int, int] = (1, 40),
    dims: tuple[int, int] = (1, 40),
    n_select: tuple[int, int] = (1, 12),
    max_iter: int = 40,
) -> Problem:
    return build(
        draw(st.integers(0, 2**16), label="seed"),
        draw(st.integers(1, 3), label="batch"),
        draw(st.integers(*candidates), label="candidates"),
        draw(st.integers(*dims), label="dim"),
        draw(st.sampled_from(dtypes), label="dtype"),
        draw(st.sampled_from(kinds), label="kind"),
        draw(st.integers(*n_select), label="n_select"),
        draw(st.integers(0, max_iter), label="max_iter"),
    )


Operator = Callable[..., tuple[torch.Tensor, ...]]


def selection(method: str) -> Operator:
    """By one of METHODS; candidates are rows of ``pool``, [M, d]."""

    def run(
        p: Problem,
        sizes: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        options: dict[str, Any] = {"max_iter": p.max_iter}
        if method in ("sift", "knn"):
            options = {"noise": p.noise} if method == "sift" else {}

        options |= {"pool_sizes": sizes, "candidates": candidates}
        return select(method, p.pool, p.query, p.n_select, **options)

    return run


def lmo(p: Problem, sizes: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    return hullft_ops.fw_lmo(p.pool, p.query, p.current, pool_sizes=sizes)


def integerize(
    p: Problem, sizes: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    return (
        hullft_ops.integerize(
            p.pool, p.query, p.weights, 3 * p.n_select, support_sizes=sizes
        ),
    )


def lstsq(solve: Callable[..., tuple[torch.Tensor, ...]]) -> Operator:
    """With as many weights for every pool."""

    def run(p: Problem, sizes: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        weights, *others = solve(p.pool, p.query, max_iter=p.max_iter, pool_sizes=sizes)
        wide = torch.nn.functional.pad(weights, (0, 64 - weights.shape[-1]))
        return wide, *others

    return run


OPERATORS: dict[str, Operator] = {
    **{method: selection(method) for method in METHODS},
    "simplex_lstsq": lstsq(hullft_ops.simplex_lstsq),
    "nnls": lstsq(hullft_ops.nnls),
    "lmo": lmo,
    "integerize": integerize,
}


def assert_same_bits(
    found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]
) -> None:
    assert len(found) == len(wanted)

    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(a, b), f"output {i}: {a} is not {b}"
