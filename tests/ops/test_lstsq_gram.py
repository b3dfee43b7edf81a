"""simplex_lstsq and nnls of a Gram matrix in place of rows, and of rows that take it themselves."""

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch

import hullft_ops
from lstsq_problems import KINDS, excess, largest_square, make
from problems import make_problem

pytestmark = pytest.mark.cpu_only("gram= runs on the CPU for now")

SOLVERS = [hullft_ops.simplex_lstsq, hullft_ops.nnls]
SOLVABLE = [kind for kind in KINDS if kind != "nearly on a line"]
# Fewer rows than columns, as many, and more: then the Gram matrix is singular.
SHAPES = [(1, 3), (6, 30), (20, 20), (40, 12), (70, 3)]


@pytest.mark.parametrize(
    ("solver", "kind"),
    [(hullft_ops.simplex_lstsq, "nearly on a line"), *product(SOLVERS, SOLVABLE)],
)
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
@pytest.mark.usefixtures("simd_level")
def test_the_residual_is_that_of_the_rows(
    solver: Callable, kind: str, rows: int, dim: int
) -> None:
    """1,260 problems, whose products are rounded before the solver sees them."""
    pool, query = make(rows + dim, 12, rows, dim, kind)
    gram, products = pool @ pool.mT, (pool @ query[:, :, None])[:, :, 0]
    solution = solver(gram=gram, products=products)
    weights = solution.weights

    assert (weights >= 0).all()
    assert torch.equal((weights > 0).sum(-1), solution.support_size)
    assert solution.residual.isnan().all()

    rounding = 1e-12 * largest_square(pool, query)
    squares = (query - (weights[:, None] @ pool)[:, 0]).square().sum(-1)
    above = squares - solver(pool, query).residual.square()

    assert (above <= rounding).all()

    if solver is hullft_ops.simplex_lstsq:
        assert (weights.sum(-1) - 1).abs().max() <= 1e-12
        assert (above <= 2 * solution.gap + rounding).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shared_single_and_ragged_problems(
    solver: Callable, dtype: torch.dtype
) -> None:
    pools, query = make_problem(1, 4, 9, 30)
    pool, sizes = pools[0], torch.tensor([9, 0, 4, 1])
    gram = (pool @ pool.mT).to(dtype)
    products = (query @ pool.mT).to(dtype)
    square = query.square().sum(-1).to(dtype)
    of_batch = partial(solver, products=products, square=square)
    shared, ragged = of_batch(gram=gram), of_batch(gram=gram, pool_sizes=sizes)
    grams = gram.repeat(4, 1, 1)

    assert all(map(torch.equal, of_batch(gram=grams), shared))
    assert all(map(torch.equal, of_batch(gram=grams, pool_sizes=sizes), ragged))

    exact = solver(pool, query)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5

    assert shared.weights.dtype == dtype
    assert (shared.weights - exact.weights).abs().max() <= tolerance
    assert (shared.residual - exact.residual).abs().max() <= tolerance
    assert abs(ragged.residual[1] - 1) <= 1e-6

    for b, size in enumerate(sizes.tolist()):
        of_query = partial(solver, square=square[b])
        alone = of_query(gram=gram, products=products[b])

        assert all(map(torch.equal, alone, [value[b] for value in shared]))
        assert (ragged.weights[b, size:] == 0).all()

        if size > 0:
            part = of_query(gram=gram[:size, :size], products=products[b, :size])

            assert torch.equal(part.weights, ragged.weights[b, :size])
            assert torch.equal(part.residual, ragged.residual[b])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(2, 2), (3, 1)])
def test_a_shared_matrix_that_is_not_finite(
    solver: Callable, bad: float, place: tuple[int, int]
) -> None:
    """Every query refuses it, and the next call reads its own."""
    gram, products = torch.eye(4).double(), torch.ones(3, 4).double()
    expected = solver(gram=gram, products=products)
    gram[place] = bad
    message = f"{solver.__name__}: gram has NaN or infinity in row {place[0]} for query"

    for batch in (products, products[:1]):
        with pytest.raises(ValueError, match=f"^{message} 0"):
            solver(gram=gram, products=batch)

    gram[place] = float(place[0] == place[1])
    again = solver(gram=gram, products=products)

    assert torch.equal(again.weights, expected.weights)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_square_that_is_not_finite(solver: Callable, bad: float) -> None:
    gram, products = torch.eye(4).double(), torch.ones(3, 4).double()
    square = torch.tensor([4.0, 5.0, bad]).double()
    name = solver.__name__

    with pytest.raises(ValueError, match=rf"^{name}: square\[2\] is NaN or infinity"):
        solver(gram=gram, products=products, square=square)
    with pytest.raises(ValueError, match=f"^{name}: square is NaN or infinity"):
        solver(gram=gram, products=products[0], square=square[2])

    of_each = torch.vmap(lambda c, s: solver(gram=gram, products=c, square=s).residual)
    residual = of_each(products, square)

    assert residual[:2].isfinite().all()
    assert not residual[2].isfinite()


def test_the_point_of_least_norm_of_a_gramian_of_zeros() -> None:
    zeros = torch.zeros(5, 5, dtype=torch.float64)
    solution = hullft_ops.simplex_lstsq(
        gram=zeros, products=zeros[0], square=zeros[0, 0]
    )

    assert solution.weights.sum() == 1
    assert solution.residual == solution.gap == 0
    assert (hullft_ops.nnls(gram=zeros, products=zeros[0]).weights == 0).all()


@pytest.mark.parametrize("kind", SOLVABLE)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.usefixtures("simd_level")
def test_long_rows(kind: str, solver: Callable) -> None:
    """They take their Gram matrix, unless its rounding would show."""
    pool, query = make(2, 6, 10, 700, kind)
    solution = solver(pool, query)
    # Rows past the end make the pool too wide for it.
    padded = torch.cat([pool, torch.full((6, 50, 700), float("nan"))], dim=1)
    by_rows = solver(padded, query, pool_sizes=torch.full((6,), 10))
    scale = largest_square(pool, query)

    if solver is hullft_ops.simplex_lstsq:
        assert (excess(pool, query, solution.weights) <= 1e-13 * scale).all()

    difference = solution.residual.square() - by_rows.residual.square()

    assert (difference.abs() <= 1e-13 * scale).all()

    residual = (query - (solution.weights[:, None] @ pool)[:, 0]).norm(dim=-1)

    assert ((residual - solution.residual).abs() <= 1e-13 * scale.sqrt()).all()


def test_a_corrective_selection_of_long_rows() -> None:
    """It takes their Gram matrix too, unless the support may fill."""
    pool, query = make_problem(3, 1, 6, 40_000, spread=2.0)
    select = partial(hullft_ops.fw_select, pool, query, 50, variant="corrective")
    solution = hullft_ops.simplex_lstsq(pool, query)
    selection = select()

    assert (selection.dense(6) - solution.weights).abs().max() <= 1e-12
    assert (selection.residual - solution.residual).abs() <= 1e-12
    assert selection.counts.sum() == 50

    early = select(tol=0.8)

    assert early.num_iter < selection.num_iter
    assert selection.residual < early.residual < 0.8

    assert select(max_support=2).support_size == 2
