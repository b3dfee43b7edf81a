"""knn_select against the reference, ties, ragged pools."""

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from problems import DTYPES, ON_VALUES, assert_equals_reference, make_problem, of_query


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("candidates", "n_select"), [(1, 1), (5, 5), (33, 7), (200, 50)]
)
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(dtype: torch.dtype, candidates: int, n_select: int) -> None:
    pool, query = make_problem(candidates, 3, candidates, 19, dtype, spread=2.0)
    pool = pool.flip(1)
    sel = hullft_ops.knn_select(pool, query, n_select)
    for b in range(3):
        expected = reference.knn_select(pool[b], query[b], n_select)
        assert_equals_reference(of_query(sel, b), expected, weight_tolerance=1e-7)


def test_ties_and_ragged() -> None:
    pool, query = make_problem(1, 2, 6, 5)
    pool = pool.repeat(1, 3, 1)
    sizes = torch.tensor([18, 8])
    sel = hullft_ops.knn_select(pool, query, 4, pool_sizes=sizes)
    assert sel.indices.tolist() == [[0, 6, 12, 1], [0, 6, 1, 7]]


@pytest.mark.refusal("public")
def test_more_than_the_pool() -> None:
    pool, query = make_problem(2, 2, 6, 5)
    with pytest.raises(ValueError, match="knn_select: n_select is 7, pool has 6 rows"):
        hullft_ops.knn_select(pool, query, 7)


@pytest.mark.cpu_only(ON_VALUES)
def test_more_than_a_ragged_pool() -> None:
    pool, query = make_problem(2, 2, 6, 5)
    with pytest.raises(
        ValueError, match="n_select is 4, the pool of query 1 has 3 rows"
    ):
        hullft_ops.knn_select(pool, query, 4, pool_sizes=torch.tensor([6, 3]))
