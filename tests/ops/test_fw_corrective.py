"""The variant "corrective" of fw_select: the reference's rows, and the best weights for them."""

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from problems import (
    DTYPES,
    VARIANTS,
    assert_consistent,
    assert_equals_reference,
    make_problem,
    of_query,
    remembered,
)

reference_fw_select = remembered(reference.fw_select)


def assert_selects_as_reference(
    selection: hullft_ops.Selection,
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    *,
    tolerance: float,
    max_support: int | None = None,
) -> None:
    """Rows enter in another order where the support has room for all, so cycles may differ."""
    expected = reference_fw_select(
        pool, query, n_select, variant="corrective", max_support=max_support
    )
    if len(expected.indices) < (max_support or n_select):
        expected = expected._replace(num_iter=int(selection.num_iter))

    assert_equals_reference(selection, expected, weight_tolerance=tolerance)


@pytest.mark.parametrize("n_select", [1, 5, 20, 50])
@pytest.mark.usefixtures("simd_level")
def test_golden(golden: dict[str, torch.Tensor], n_select: int) -> None:
    pool, query = golden["pool"].double(), golden["query"].double()
    sel = hullft_ops.fw_select(pool, query, n_select, variant="corrective")
    for b in range(len(pool)):
        assert_selects_as_reference(
            of_query(sel, b), pool[b], query[b], n_select, tolerance=1e-10
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("candidates", "dim", "n_select"),
    [
        (1, 3, 4),
        (2, 1, 1),
        (7, 5, 3),
        (33, 17, 9),
        (200, 70, 20),
        (200, 70, 60),
    ],
)
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(
    dtype: torch.dtype,
    candidates: int,
    dim: int,
    n_select: int,
    float32_tolerance: float,
) -> None:
    pool, query = make_problem(candidates * dim, 3, candidates, dim, dtype)
    sel = hullft_ops.fw_select(pool, query, n_select, variant="corrective")
    tolerance = 1e-10 if dtype == torch.float64 else float32_tolerance

    for b in range(3):
        assert_selects_as_reference(
            of_query(sel, b), pool[b], query[b], n_select, tolerance=tolerance
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_support", [2, 5, 20])
@pytest.mark.usefixtures("simd_level")
def test_max_support_bounds_the_rows_and_not_the_units(
    variant: str, max_support: int
) -> None:
    pool, query = make_problem(12, 4, 100, 32)
    options = {"variant": variant, "max_support": max_support, "max_iter": 40}
    sel = hullft_ops.fw_select(pool, query, 20, **options)

    assert_consistent(pool, query, sel, 20)

    assert (sel.support_size <= max_support).all()

    for b in range(4):
        expected = reference_fw_select(pool[b], query[b], 20, **options)
        if variant == "corrective" and len(expected.indices) < max_support:
            expected = expected._replace(num_iter=int(sel.num_iter[b]))

        assert_equals_reference(of_query(sel, b), expected)


def test_dense_has_the_weight_of_every_row() -> None:
    pool, query = make_problem(15, 3, 30, 12)
    sizes = torch.tensor([30, 0, 4])
    sel = hullft_ops.fw_select(pool, query, 9, variant="corrective", pool_sizes=sizes)
    weights = sel.dense(30)

    assert weights.shape == (3, 30)

    for b in range(3):
        expected = torch.zeros(30, dtype=torch.float64)
        size = int(sel.support_size[b])
        expected[sel.indices[b, :size]] = sel.weights[b, :size]

        assert torch.equal(weights[b], expected)
        assert torch.equal(of_query(sel, b).dense(30), expected)


@pytest.mark.parametrize(
    ("n_rows", "error", "message"),
    [
        (0, ValueError, "dense: n_rows must be in 1.* got 0"),
        (2, ValueError, "dense: n_rows must be that of the pool, got 2 and index 2"),
        (1, ValueError, "dense: n_rows must be that of the pool, got 1 and index 2"),
        (2.0, TypeError, "dense: n_rows must be an int, got float"),
    ],
)
def test_dense_wants_a_number_of_rows(
    n_rows: object, error: type[Exception], message: str
) -> None:
    query = torch.tensor([0.0, 0.4, 0.6])
    sel = hullft_ops.fw_select(torch.eye(3), query, 2, variant="corrective")

    with pytest.raises(error, match=f"^{message}"):
        sel.dense(n_rows)
