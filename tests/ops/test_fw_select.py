"""fw_select: golden pools, the reference, every shape a caller may bring."""

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from problems import (
    DTYPES,
    VARIANTS,
    assert_equals_reference,
    make_problem,
    of_query,
    remembered,
)

reference_fw_select = remembered(reference.fw_select)
GOLDEN_N = [1, 5, 20, 50]


@pytest.mark.parametrize("n_select", GOLDEN_N)
@pytest.mark.usefixtures("simd_level")
def test_golden_float64(golden: dict[str, torch.Tensor], n_select: int) -> None:
    pool = golden["pool"].double()
    query = golden["query"].double()
    sel = hullft_ops.fw_select(pool, query, n_select)

    assert torch.equal(sel.indices, golden[f"indices_n{n_select}"])
    assert torch.equal(sel.counts, golden[f"counts_n{n_select}"])

    weights_error = sel.weights - golden[f"weights_n{n_select}"]

    assert weights_error.abs().max() < 1e-10

    residual_error = sel.residual - golden[f"residual_n{n_select}"]

    assert residual_error.abs().max() < 1e-10


@pytest.mark.parametrize("n_select", GOLDEN_N)
@pytest.mark.usefixtures("simd_level")
def test_golden_float32(
    golden: dict[str, torch.Tensor], n_select: int, float32_tolerance: float
) -> None:
    sel = hullft_ops.fw_select(golden["pool"], golden["query"], n_select)

    assert torch.equal(sel.indices, golden[f"indices_n{n_select}"])
    assert torch.equal(sel.counts, golden[f"counts_n{n_select}"])

    weights_error = sel.weights - golden[f"weights_n{n_select}"]

    assert weights_error.abs().max() < float32_tolerance


SHAPES = [
    (1, 3, 4),
    (2, 1, 1),
    (7, 5, 3),
    (33, 17, 9),
    (200, 70, 20),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("candidates", "dim", "n_select"), SHAPES)
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(
    dtype: torch.dtype,
    candidates: int,
    dim: int,
    n_select: int,
    float32_tolerance: float,
    device: torch.device,
) -> None:
    pool, query = make_problem(candidates * dim, 3, candidates, dim, dtype)
    narrow_state = device.type == "cuda" and dtype != torch.float64
    max_iter = 40 if narrow_state else 250
    sel = hullft_ops.fw_select(pool, query, n_select, max_iter=max_iter)
    tolerance = 1e-10 if dtype == torch.float64 else float32_tolerance

    for b in range(3):
        expected = reference_fw_select(pool[b], query[b], n_select, max_iter=max_iter)
        assert_equals_reference(of_query(sel, b), expected, weight_tolerance=tolerance)


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
