"""The corrective solver: simplex_lstsq, nnls, and selections."""

from itertools import product

import torch

import hullft_ops
from cuda_sim.checks import (
    case,
    case_of_values,
    hull_problem,
    problems_of_bad_values,
)
from cuda_sim.library import CONSTRAINTS, Launch, Library, Lstsq
from lstsq_problems import adjoints, conditioned, spectra
from problems import of_query

SOLVERS = {"simplex": hullft_ops.simplex_lstsq, "non-negative": hullft_ops.nnls}


def kinds(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Pools, queries and sizes: plain; equal rows; rows of rank 3; a row, the middle, and half of
    the middle as the query; a query of 0; one row; fewer rows than dimensions."""
    pool, query = hull_problem(21, 9, 40, 8, torch.float64)
    pool[1, 1::2] = pool[1, ::2]
    whole = (4 * pool[2]).round()
    pool[2] = whole[:, :3] @ whole[:3] / 16
    pool[4:7] += 0.5
    query[3] = pool[3, 5]
    query[4:6] = pool[4:6].mean(1)
    query[5] /= 2
    query[6] = 0
    sizes = torch.tensor([40, 40, 40, 40, 40, 40, 33, 1, 7])
    return pool.to(dtype), query.to(dtype), sizes


def check_optimal(
    pool: torch.Tensor, query: torch.Tensor, constraint: str, answer: Lstsq
) -> None:
    """One query. The squared residual is above its minimum by twice the gap at most, and without
    the sum by so much for each unit of weight."""
    real = answer.weights.dtype
    x, q, w = pool.double(), query.double(), answer.weights.double()[: len(pool)]
    r = q - w @ x
    c = x @ r
    largest = max(x.square().sum(1).max(), q.square().sum())
    tolerance = (1e-9 if real == torch.float64 else 1e-5) * largest

    assert (w >= 0).all()
    assert (w > 0).sum() == answer.support_size
    assert abs(r.norm() - answer.residual) <= tolerance

    if constraint == "simplex":
        gap = c.max() - w @ c
        assert abs(w.sum() - 1) <= 10 * torch.finfo(real).eps
    else:
        gap = torch.where(w > 0, c.abs(), c).max().clamp(min=0)

    assert gap <= tolerance
    assert abs(gap - answer.gap) <= tolerance


def check_kinds(
    library: Library,
    constraint: str,
    problem: tuple[torch.Tensor, ...],
    launch: Launch,
) -> None:
    """Of a pool that queries share, too."""
    pool, query, sizes = problem
    answer = library.lstsq(constraint, pool, query, sizes=sizes, launch=launch)
    for b, n in enumerate(sizes):
        seen = pool[b, :n] if pool.dim() == 3 else pool[:n]
        one = of_query(answer, b)
        check_optimal(seen, query[b], constraint, one)

        assert (one.weights[n:] == 0).all()


@case
def corrective_kinds(library: Library, seed: int) -> None:
    """The state of 16-bit pools is float32's; test_frank_wolfe_equals_reference loads them."""
    dtypes = (torch.float32, torch.float64)
    for dtype, gram, constraint in product(dtypes, (True, False), CONSTRAINTS):
        check_kinds(library, constraint, kinds(dtype), Launch(seed, gram, 32))


@case
def corrective_few_rows(library: Library, seed: int) -> None:
    """At most 8, 16 and 32, of own pools and of a shared one: a lane has a row."""
    for dtype, candidates, constraint in product(
        (torch.float32, torch.float64), (7, 11, 32), CONSTRAINTS
    ):
        pool, query, sizes = kinds(dtype)
        pool, sizes = pool[:, :candidates].contiguous(), sizes.clamp(max=candidates)
        for rows in (pool, pool[5]):
            launch = Launch(seed, gram=True)
            check_kinds(library, constraint, (rows, query, sizes), launch)


@case_of_values
def corrective_spectra(library: Library, seed: int) -> None:
    """Smooth rows in float32 have the weights and supports of float64, for condition numbers from
    100 to 10,000: a shared pool, pools of their own, and columns that rounds compute."""
    for candidates, width in product((12, 24, 32, 40, 100), (1.42, 1.72, 1.97)):
        pool, query = spectra(seed, 6, candidates, width)
        pools = pool.repeat(6, 1, 1)
        for constraint, solve in SOLVERS.items():
            expected = solve(pool.double(), query.double())
            for rows, gram in ((pool, None), (pools, None), (pool, False)):
                launch = Launch(seed, gram, rounds=-1 if gram is None else 3)
                answer = library.lstsq(constraint, rows, query, launch=launch)
                error = (answer.weights - expected.weights).abs().max()

                assert error <= 1e-6 * expected.weights.sum(1).max()
                assert torch.equal(answer.weights > 0, expected.weights > 0)


@case_of_values
def corrective_condition(library: Library, seed: int) -> None:
    """Few rows, many of which join and leave: a tableau loses digits to each that leaves."""
    for candidates in (8, 16, 32):
        pool, query = conditioned(seed, 6, candidates, 3e4)
        for constraint, solve in SOLVERS.items():
            expected = solve(pool.double(), query.double()).weights
            launch = Launch(seed, gram=True)
            weights = library.lstsq(constraint, pool, query, launch=launch).weights

            assert (weights - expected).abs().max() <= 1e-6 * expected.sum(1).max()
            assert torch.equal(weights > 0, expected > 0)


@case
def corrective_long_rows(library: Library, seed: int) -> None:
    """Rows that a plan splits: own pools and a shared one; a query, one between two rows, one that
    sees none, and one that fails."""
    for dtype, candidates, dim, constraint in (
        (torch.float32, 33, 32_771, "simplex"),
        (torch.float64, 6, 32_768, "non-negative"),
        (torch.float32, 6, 32_768, "simplex"),
    ):
        pool, query = hull_problem(6, 4, candidates, dim, dtype)
        query[1] = (pool[1, 2] + 3 * pool[1, 1]) / 4
        query[3, 7] = float("nan")
        sizes = torch.tensor([5, 4, 0, candidates])
        rows = pool[1] if candidates > 6 else pool
        launch = Launch(seed)
        answer = library.lstsq(constraint, rows, query, sizes=sizes, launch=launch)
        for b in range(2):
            seen = rows[b, : sizes[b]] if rows.dim() == 3 else rows[: sizes[b]]
            check_optimal(seen, query[b], constraint, of_query(answer, b))

        assert abs(answer.residual[2] - query[2].norm()) < 1e-6
        assert answer.residual[3].isnan()


@case
def corrective_small(library: Library, seed: int) -> None:
    """One dimension, more rows than a block has threads, and a support of two warps."""
    for candidates, dim in ((1, 1), (70, 1), (150, 2), (45, 44)):
        pool, query = hull_problem(dim, 1, candidates, dim, torch.float32)
        if dim > 2:
            query = pool.mean(1)

        problem = pool, query, torch.tensor([candidates])
        for constraint, gram in product(CONSTRAINTS, (True, False)):
            check_kinds(library, constraint, problem, Launch(seed, gram, 64))


@case
def corrective_stopping(library: Library, seed: int) -> None:
    pool, query = hull_problem(5, 1, 20, 8, torch.float32)
    rules = (
        ({"max_iter": 2}, 2),
        ({"max_support": 3}, 2),
        ({"gap_tol": 9.0}, 0),
        ({"tol": 9.0}, 0),
    )
    for rule, cycles in rules:
        options = {"variant": "corrective", "launch": Launch(seed)}
        answer = library.frank_wolfe(pool, query, 9, **rule, **options)

        assert answer.num_iter.item() == cycles
        assert answer.support_size.item() == cycles + 1


@case
def corrective_failures(library: Library, seed: int) -> None:
    """A query that cannot be solved says so; one that sees no rows has weights of 0."""
    problems = list(problems_of_bad_values())
    pool, query = problems[0]
    problems.append((pool.double().nan_to_num(1e200), query.double().nan_to_num(1e200)))
    sizes = torch.tensor([0, 20, 20])
    for gram, (pool, query) in product((True, False), problems):
        options = {"sizes": sizes, "launch": Launch(seed, gram, 64)}
        for constraint in CONSTRAINTS:
            answer = library.lstsq(constraint, pool, query, **options)

            assert answer.weights[0].abs().sum() == answer.gap[0] == 0
            assert abs(answer.residual[0] - query[0].norm()) < 1e-6
            assert answer.weights[1:].isnan().all()
            assert answer.residual[1:].isnan().all()
            assert answer.support_size.tolist() == [0, 0, 0]
            assert answer.num_iter.tolist() == [0, -1, -1]


def check_adjoint(
    library: Library,
    pool: torch.Tensor,
    weights: torch.Tensor,
    launch: Launch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
    for on_simplex in (True, False):
        expected = adjoints(pool, weights, gradient, False, on_simplex)
        v = library.lstsq_adjoint(pool, weights, gradient, on_simplex, launch=launch)

        assert (v - expected).norm() <= 1e-7 * expected.norm()


@case
def adjoint(library: Library, seed: int) -> None:
    """Systems of a warp and of a block, from pools, shared ones and gathered supports; rows that
    depend, rows far from 0, and queries with one row and with none."""
    for dtype, candidates in (
        (torch.float32, 9),
        (torch.float64, 21),
        (torch.float32, 40),
    ):
        pool, _ = hull_problem(3, 4, candidates, 12, dtype)
        pool[1:3] += 5
        pool[2, 1::2] = pool[2, ::2][: candidates // 2]
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(4, candidates, generator=generator).to(dtype) - 0.5
        weights[0, 10:] = 0
        weights[3] = torch.eye(candidates, dtype=dtype)[4]
        for rows in (pool, pool[2]):
            launch = Launch(seed, max_workspace_bytes=40_000)
            check_adjoint(library, rows, weights, launch)
            check_adjoint(library, rows, 0 * weights, launch)


@case_of_values
def adjoint_of_long_rows(library: Library, seed: int) -> None:
    for candidates in (6, 33):
        pool, _ = hull_problem(3, 1, candidates, 33_000, torch.float32)
        weights = torch.rand(1, candidates) - 0.2
        check_adjoint(library, pool, weights, Launch(seed))
