"""nnls: SciPy's solution, and the conditions of an optimum."""

import numpy as np
import pytest
import scipy.optimize
import torch

import hullft_ops
from hullft_ops import reference
from lstsq_problems import KINDS, largest_square, make
from problems import DTYPES, make_problem

SHAPES = [
    (1, 1),
    (2, 5),
    (8, 2),
    (30, 40),
    (80, 20),
]
# A condition number of 1e7: inner products, which square it, keep no digit.
SOLVABLE = [kind for kind in KINDS if kind != "nearly on a line"]


@pytest.mark.parametrize("kind", SOLVABLE)
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
@pytest.mark.usefixtures("simd_level")
def test_the_residual_is_scipys(kind: str, rows: int, dim: int) -> None:
    pool, query = make(rows + dim, 5, rows, dim, kind)
    solution = hullft_ops.nnls(pool, query)
    scale = largest_square(pool, query)

    assert (solution.weights >= 0).all()
    assert torch.equal((solution.weights > 0).sum(-1), solution.support_size)

    for b in range(5):
        x, q = pool[b].cpu().numpy(), query[b].cpu().numpy()
        expected, _ = scipy.optimize.nnls(x.T, q, maxiter=10_000)
        best = np.square(q - expected @ x).sum()
        square = np.square(q - solution.weights[b].cpu().numpy() @ x).sum()

        assert square - best <= 1e-14 * scale[b].item()
        assert abs(solution.residual[b].item() ** 2 - square) <= 1e-14 * scale[b]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_reference(dtype: torch.dtype, float32_tolerance: float) -> None:
    pool, query = make_problem(2, 3, 50, 60, dtype, spread=2.0)
    solution = hullft_ops.nnls(pool, query)
    tolerance = 1e-11 if dtype == torch.float64 else float32_tolerance

    for b in range(3):
        expected = reference.nnls(pool[b], query[b])

        assert (solution.weights[b] - expected.weights).abs().max() <= tolerance
        assert abs(solution.residual[b].item() - expected.residual) <= tolerance


def test_the_gap_is_the_largest_violation() -> None:
    pool, query = make_problem(3, 4, 60, 40, spread=2.0)
    exact = hullft_ops.nnls(pool, query)
    early = hullft_ops.nnls(pool, query, max_iter=3)

    for solution in (exact, early):
        residual = query - (solution.weights.unsqueeze(1) @ pool).squeeze(1)
        correlations = (pool @ residual.unsqueeze(-1)).squeeze(-1)
        of_support = correlations.abs().where(solution.weights > 0, 0.0)
        violation = torch.maximum(correlations, of_support).max(-1).values

        assert ((violation - solution.gap).abs() <= 1e-13).all()

    assert exact.gap.max() <= 1e-13
    assert (early.gap > 1e-6).all()
    assert (early.num_iter == 3).all()
