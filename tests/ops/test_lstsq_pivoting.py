"""Small pools that many queries share: block principal pivoting, and what it leaves to the rows."""

from collections.abc import Callable

import pytest
import torch

import hullft_ops
from lstsq_problems import KINDS, assert_nearest_of_the_hull, largest_square, make

pytestmark = pytest.mark.cpu_only("pivoting runs on the CPU")

SOLVERS = [hullft_ops.simplex_lstsq, hullft_ops.nnls]


def queries_of(kind: str, rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    pool, query = make(rows, 1, rows, dim, kind)
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(21, rows, generator=generator, dtype=torch.float64).log()
    noise = torch.randn(21, dim, generator=generator, dtype=torch.float64)
    combinations = (shares / shares.sum(1, keepdim=True)) @ pool[0]
    return pool[0], query + 0.5 * (combinations - query) + 0.3 * query.std() * noise


def one_by_one(
    solver: Callable, pool: torch.Tensor, query: torch.Tensor
) -> torch.Tensor:
    """Their residuals, from the rows."""
    return torch.stack(
        [solver(pool, q, max_iter=3 * len(pool)).residual for q in query]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "dim"), [(1, 9), (5, 5), (12, 200), (64, 70)])
@pytest.mark.usefixtures("simd_level")
def test_no_point_of_the_hull_is_nearer(kind: str, rows: int, dim: int) -> None:
    pool, query = queries_of(kind, rows, dim)
    solution = hullft_ops.simplex_lstsq(pool, query)

    assert_nearest_of_the_hull(pool.expand(len(query), -1, -1), query, solution)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nearly on a line"])
@pytest.mark.parametrize(("rows", "dim"), [(1, 9), (5, 5), (12, 200), (64, 70)])
@pytest.mark.usefixtures("simd_level")
def test_nnls_has_the_residual_of_single_queries(
    kind: str, rows: int, dim: int
) -> None:
    pool, query = queries_of(kind, rows, dim)
    solution = hullft_ops.nnls(pool, query)
    scale = largest_square(pool.expand(len(query), -1, -1), query)
    expected = one_by_one(hullft_ops.nnls, pool, query)

    assert (solution.weights >= 0).all()

    difference = solution.residual.square() - expected.square()

    assert (difference.abs() <= 1e-13 * scale).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.usefixtures("simd_level")
def test_a_query_has_the_same_bits_in_every_batch_and_thread(solver: Callable) -> None:
    pool, query = queries_of("plain", 20, 5000)
    query = query.repeat(8, 1)
    before = torch.get_num_threads()
    solution = solver(pool, query)
    torch.set_num_threads(3)

    try:
        on_threads = solver(pool, query)
    finally:
        torch.set_num_threads(before)

    later = solver(pool, query[3:17])
    strided = solver(pool.mT.contiguous().mT, query.repeat(1, 2)[:, :5000])

    for value, threads, part, viewed in zip(
        solution, on_threads, later, strided, strict=True
    ):
        assert torch.equal(value, threads)
        assert torch.equal(value[3:17], part)
        assert torch.equal(value, viewed)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_a_bad_query_is_named(bad: float) -> None:
    pool, query = queries_of("plain", 6, 40)
    query[9, 3] = bad

    with pytest.raises(ValueError, match=r"simplex_lstsq: .*query\[9\]"):
        hullft_ops.simplex_lstsq(pool, query)
