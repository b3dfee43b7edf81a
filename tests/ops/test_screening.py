"""fw_select screens float32 and narrower pools in 16-bit integers: the answer must have the bits of
that for the same values in float64, however close the candidates are."""

import pytest
import torch

import hullft_ops
from problems import VARIANTS, make_problem

pytestmark = pytest.mark.cpu_only(
    "only the CPU screens; the state of narrow pools is float64 there, float32 on CUDA"
)

LARGE = (200, 1024)  # candidates and dimensions
SMALL = (117, 77)  # no whole number of tiles or vectors


def assert_as_in_float64(
    pool: torch.Tensor, query: torch.Tensor, n_select: int = 20, **options: object
) -> hullft_ops.Selection:
    wide_pool = pool.double()
    wide_query = query.double()
    sel = hullft_ops.fw_select(pool, query, n_select, **options)
    exact = hullft_ops.fw_select(wide_pool, wide_query, n_select, **options)

    assert torch.equal(sel.indices, exact.indices)
    assert torch.equal(sel.counts, exact.counts)
    assert torch.equal(sel.num_iter, exact.num_iter)
    assert torch.equal(sel.weights, exact.weights.float())
    assert torch.equal(sel.residual, exact.residual.float())
    assert torch.equal(sel.gap, exact.gap.float())

    return sel


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("step", [1e-4, 1e-6, 1e-7, 0.0])
@pytest.mark.usefixtures("simd_level")
def test_candidates_closer_than_the_screen_can_tell(
    shape: tuple[int, int], variant: str, step: float
) -> None:
    """Groups of rows that differ by less than 16-bit integers, float32 products, or not at all."""
    pool, query = make_problem(3, 2, *shape, torch.float32)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(pool.shape, generator=generator) / shape[1] ** 0.5
    first_of_group = torch.arange(shape[0]) // 8 * 8
    pool = pool[:, first_of_group] + step * noise

    assert_as_in_float64(pool, query, variant=variant, max_iter=60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.usefixtures("simd_level")
def test_a_query_within_the_pool(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """No residual: every correlation is within an error of the largest."""
    pool, _ = make_problem(7, 1, *shape, dtype)
    query = pool[:, 3].contiguous()
    sel = assert_as_in_float64(pool, query)

    assert sel.indices[0, 0] == 3
    assert sel.num_iter == 0


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e4, 1e18, 3e18])
@pytest.mark.usefixtures("simd_level")
def test_values_that_the_screen_cannot_hold(
    shape: tuple[int, int], scale: float
) -> None:
    """Squares under- or overflow float32."""
    pool, query = make_problem(8, 2, *shape, torch.float32)
    sel = assert_as_in_float64(scale * pool, scale * query, tol=0.0, max_iter=20)

    assert (sel.num_iter > 10).all()


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e4, 1e18, 1e25])
@pytest.mark.usefixtures("simd_level")
def test_rows_that_the_screen_cannot_hold_beside_others(
    shape: tuple[int, int], scale: float
) -> None:
    pool, query = make_problem(8, 2, *shape, torch.float32)
    pool[:, ::2] *= scale
    sel = assert_as_in_float64(pool, query, tol=0.0, max_iter=20)

    assert (sel.num_iter > 10).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("simd_level")
def test_rows_with_a_single_entry(variant: str) -> None:
    """The largest integers there are, and products that are 0."""
    pool = torch.diag(torch.linspace(0.5, 2, 77))
    query = torch.linspace(1, 0.1, 77) / 8

    assert_as_in_float64(pool[None], query[None], variant=variant, max_iter=60)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("simd_level")
def test_rows_of_every_scale_and_of_zeros(variant: str) -> None:
    pool, query = make_problem(12, 2, *SMALL, torch.float32)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(SMALL[0], generator=generator)
    scales = torch.logspace(-30, 1, SMALL[0])[order]
    pool *= scales.unsqueeze(1)
    pool[:, ::5] = 0

    assert_as_in_float64(pool, query, variant=variant, max_iter=60)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.usefixtures("simd_level")
def test_a_query_just_outside_the_hull(shape: tuple[int, int], variant: str) -> None:
    """A residual so small that the error of the screen exceeds what tells the candidates apart."""
    pool, _ = make_problem(13, 1, *shape, torch.float32)
    query = pool[:, :6].mean(1) * 1.001

    assert_as_in_float64(pool, query, variant=variant, max_iter=60)


@pytest.mark.usefixtures("simd_level")
def test_ragged_pools_one_after_the_other() -> None:
    """Nothing of a larger pool may be left for a smaller one."""
    pool, query = make_problem(15, 4, *SMALL, torch.float32)
    sizes = torch.tensor([117, 5, 1, 60])
    pool[1, 5:] = float("nan")

    assert_as_in_float64(pool[:1], query[:1])
    assert_as_in_float64(pool, query, pool_sizes=sizes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_not_finite(shape: tuple[int, int], bad: float) -> None:
    pool, query = make_problem(11, 1, *shape, torch.float32)
    pool[0, 77, 13] = bad

    with pytest.raises(
        ValueError, match="fw_select: pool has NaN or infinity in row 77"
    ):
        hullft_ops.fw_select(pool, query, 5)
