"""knn_select against the reference."""

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from problems import DTYPES, assert_equals_reference, make_problem, of_query

SHAPES = [
    (1, 1),
    (5, 5),
    (33, 7),
    (200, 50),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("candidates", "n_select"), SHAPES)
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(dtype: torch.dtype, candidates: int, n_select: int) -> None:
    pool, query = make_problem(candidates, 3, candidates, 19, dtype, spread=2.0)
    pool = pool.flip(1)
    selection = hullft_ops.knn_select(pool, query, n_select)

    for b in range(3):
        expected = reference.knn_select(pool[b], query[b], n_select)
        assert_equals_reference(of_query(selection, b), expected, weight_tolerance=1e-7)
