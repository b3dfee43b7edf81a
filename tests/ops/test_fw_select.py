"""fw_select: golden pools, the reference, every shape a caller may bring."""

from typing import Any

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
GOLDEN_N = [1, 5, 20, 50]


def assert_selects(
    selection: hullft_ops.Selection,
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    *,
    tolerance: float = 1e-10,
    **options: Any,
) -> None:
    """What the reference selects, for each query.

    Where the support of "corrective" has room for all rows they enter in another order.
    """
    for b in range(len(query)):
        of_b = of_query(selection, b)
        expected = reference_fw_select(pool[b], query[b], n_select, **options)
        has_room = len(expected.indices) < options.get("max_support", n_select)
        if has_room and options["variant"] == "corrective":
            expected = expected._replace(num_iter=int(of_b.num_iter))

        assert_equals_reference(of_b, expected, weight_tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_select", GOLDEN_N)
@pytest.mark.usefixtures("simd_level")
def test_golden_pools(
    golden: dict[str, torch.Tensor],
    n_select: int,
    dtype: torch.dtype,
    float32_tolerance: float,
) -> None:
    pool, query = golden["pool"].to(dtype), golden["query"].to(dtype)
    sel = hullft_ops.fw_select(pool, query, n_select)
    tolerance = 1e-10 if dtype == torch.float64 else float32_tolerance

    assert torch.equal(sel.indices, golden[f"indices_n{n_select}"])
    assert torch.equal(sel.counts, golden[f"counts_n{n_select}"])

    for name in ("weights", "residual"):
        error = getattr(sel, name) - golden[f"{name}_n{n_select}"]

        assert error.abs().max() < tolerance


@pytest.mark.parametrize("n_select", GOLDEN_N)
@pytest.mark.usefixtures("simd_level")
def test_golden_pools_of_corrective(
    golden: dict[str, torch.Tensor], n_select: int
) -> None:
    pool, query = golden["pool"].double(), golden["query"].double()
    sel = hullft_ops.fw_select(pool, query, n_select, variant="corrective")

    assert_selects(sel, pool, query, n_select, variant="corrective")


SHAPES = [
    (1, 3, 4),
    (2, 1, 1),
    (7, 5, 3),
    (33, 17, 9),
    (200, 70, 20),
    (200, 70, 60),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("candidates", "dim", "n_select"), SHAPES)
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(
    variant: str,
    dtype: torch.dtype,
    candidates: int,
    dim: int,
    n_select: int,
    float32_tolerance: float,
    device: torch.device,
) -> None:
    pool, query = make_problem(candidates * dim, 3, candidates, dim, dtype)
    narrow_state = device.type == "cuda" and dtype != torch.float64
    options = {"variant": variant}
    if narrow_state and variant == "vanilla":
        options["max_iter"] = 40

    sel = hullft_ops.fw_select(pool, query, n_select, **options)
    tolerance = 1e-10 if dtype == torch.float64 else float32_tolerance

    assert_selects(sel, pool, query, n_select, tolerance=tolerance, **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_support", [2, 5, 20])
@pytest.mark.usefixtures("simd_level")
def test_max_support_bounds_the_rows_and_not_the_units(
    variant: str, max_support: int
) -> None:
    pool, query = make_problem(12, 4, 100, 32)
    options = {"variant": variant, "max_support": max_support, "max_iter": 40}
    sel = hullft_ops.fw_select(pool, query, 20, **options)

    assert_consistent(pool, query, sel, 20, bound=1e-11)

    assert (sel.support_size <= max_support).all()

    assert_selects(sel, pool, query, 20, **options)


@pytest.mark.parametrize("max_support", [2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_of_a_limited_support_by_their_products(
    max_support: int, dtype: torch.dtype
) -> None:
    """The rows enter in the order of the reference, the first by its product with the query."""
    pool, query = make_problem(16, 2, 8, 40_000, dtype)
    pool[:, 3] *= 2
    options = {"variant": "corrective", "max_support": max_support}
    sel = hullft_ops.fw_select(pool, query, 9, **options)

    assert_selects(sel, pool, query, 9, tolerance=1e-6, **options)


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        (0.99e-6, 0),
        (1.01e-6, 1),
    ],
)
@pytest.mark.parametrize("norm", [1.0, 2.0**-40, 2.0**40])
def test_a_direction_shorter_than_the_documented_one_is_none(
    length: float, steps: int, norm: float
) -> None:
    x = norm * torch.tensor([[1.0, 0.0], [1.0, length]], dtype=torch.float64)
    q = norm * torch.tensor([1.0, length / 3], dtype=torch.float64)
    sel = hullft_ops.fw_select(x.flip(0), q, 2, max_iter=1, tol=0.0)

    assert sel.num_iter.item() == steps


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_row_that_is_never_picked(variant: str, dtype: torch.dtype) -> None:
    """What counts as rounding goes by the rows of the combination."""
    pool, query = make_problem(14, 2, 30, 12, dtype)
    expected = hullft_ops.fw_select(pool, query, 6, variant=variant)
    longer = torch.cat([pool, -6e4 * query.unsqueeze(1)], 1)
    sel = hullft_ops.fw_select(longer, query, 6, variant=variant)

    assert all(map(torch.equal, sel, expected))


@pytest.mark.usefixtures("simd_level")
def test_a_whole_step_toward_a_vertex_leaves_nothing_else() -> None:
    """The first vertex has the largest product with the query and lies further off."""
    x = torch.tensor([[2.0, 10.0], [1.5, 0.0]], dtype=torch.float64)
    q = torch.tensor([1.0, 0.0], dtype=torch.float64)

    for variant in VARIANTS:
        sel = hullft_ops.fw_select(x, q, 2, variant=variant, max_iter=1)
        expected = reference.fw_select(x, q, 2, variant=variant, max_iter=1)

        assert_equals_reference(sel, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gap_is_negative(variant: str) -> None:
    """At the optimum, rounding would put it below 0."""
    pool, query = make_problem(1, 1000, 12, 6, spread=1.0)
    sel = hullft_ops.fw_select(pool, 3 * query, 8, variant=variant)

    assert (sel.gap >= 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopping_rules(variant: str) -> None:
    pool, query = make_problem(14, 4, 40, 10)
    still = hullft_ops.fw_select(pool, query, 5, variant=variant, max_iter=0)

    assert still.num_iter.tolist() == [0] * 4
    assert still.support_size.tolist() == [1] * 4

    loose = hullft_ops.fw_select(pool, query, 40, variant=variant, tol=10.0)

    assert loose.num_iter.tolist() == [0] * 4

    by_gap = hullft_ops.fw_select(pool, query, 40, variant=variant, gap_tol=1e-2)
    unbounded = hullft_ops.fw_select(pool, query, 40, variant=variant)

    assert (by_gap.gap <= 1e-2).all()
    assert (by_gap.num_iter < unbounded.num_iter).all()


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
        (
            2,
            ValueError,
            "dense: n_rows must be the pool's number of rows, got 2 and index 2",
        ),
        (
            1,
            ValueError,
            "dense: n_rows must be the pool's number of rows, got 1 and index 2",
        ),
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
