"""fw_select screens float32 and narrower pools in 16-bit integers: the answer must have the bits of
that for the same values in float64, however close the candidates are."""

from collections.abc import Iterator

import pytest
import torch
from benchmarks.memory import peak_bytes

import hullft_ops
from hullft_ops import _C
from problems import VARIANTS, make_problem
from switches import switched

pytestmark = pytest.mark.cpu_only(
    "only the CPU screens; the state of narrow pools is float64 there, float32 on CUDA"
)

LARGE = (200, 1024)  # candidates and dimensions
SMALL = (117, 77)  # no whole number of tiles or vectors


@pytest.fixture(autouse=True, params=[True, False], ids=["three", "two"])
def _columns_in_a_pass(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield from switched(_C.three_columns, _C.use_three_columns, request.param)


def assert_as_in_float64(
    pool: torch.Tensor, query: torch.Tensor, n_select: int = 20, **options: object
) -> hullft_ops.Selection:
    found = hullft_ops.fw_select(pool, query, n_select, **options)
    exact = hullft_ops.fw_select(pool.double(), query.double(), n_select, **options)
    assert torch.equal(found.indices, exact.indices)
    assert torch.equal(found.counts, exact.counts)
    assert torch.equal(found.num_iter, exact.num_iter)
    assert torch.equal(found.weights, exact.weights.float())
    assert torch.equal(found.residual, exact.residual.float())
    assert torch.equal(found.gap, exact.gap.float())
    return found


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
    pool = pool[:, torch.arange(shape[0]) // 8 * 8] + step * noise
    assert_as_in_float64(pool, query, variant=variant, max_iter=60)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.usefixtures("simd_level")
def test_the_lowest_of_equal_rows_wins(shape: tuple[int, int]) -> None:
    pool, query = make_problem(5, 1, *shape, torch.float32)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(6)) // 2
    found = assert_as_in_float64(pool[:, order], query)
    chosen = found.indices[found.indices >= 0]
    first = [int((order == order[i]).nonzero()[0]) for i in chosen]
    assert chosen.tolist() == first


def test_more_steps_than_are_kept() -> None:
    """A step takes 40 bytes of those that are kept, for as long as the thread lives."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(40, 16, generator=generator)
    query = torch.rand(40, generator=generator).softmax(0) @ pool
    few, many = 200_000, 1_500_000
    assert_as_in_float64(pool, query, 50, max_iter=few, tol=0.0)

    def peak_of(steps: int) -> int:
        def select() -> None:
            found = hullft_ops.fw_select(pool, query, 50, max_iter=steps, tol=0.0)
            assert found.num_iter == steps

        return peak_bytes(select, pool.device)

    assert peak_of(many) - peak_of(few) < 8 << 20 < 40 * (many - few)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.usefixtures("simd_level")
def test_a_query_within_the_pool(shape: tuple[int, int]) -> None:
    """No residual: every correlation is within an error of the largest."""
    pool, _ = make_problem(7, 1, *shape, torch.float32)
    found = assert_as_in_float64(pool, pool[:, 3].contiguous())
    assert found.indices[0, 0] == 3
    assert found.num_iter == 0


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("scale", "variant"),
    # Between rows this close to each other pairwise steps alone are taken.
    [
        (1e-25, "pairwise"),
        (1e-12, "pairwise"),
        *((s, "vanilla") for s in (1e4, 1e18, 3e18)),
    ],
)
@pytest.mark.usefixtures("simd_level")
def test_values_that_the_screen_cannot_hold(
    shape: tuple[int, int], scale: float, variant: str
) -> None:
    """Squares under- or overflow float32."""
    pool, query = make_problem(8, 2, *shape, torch.float32)
    options = {"variant": variant, "tol": 0.0, "max_iter": 20}
    found = assert_as_in_float64(pool * scale, query * scale, **options)
    assert (found.num_iter > 10).all()


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e4, 1e18, 1e25])
@pytest.mark.usefixtures("simd_level")
def test_rows_that_the_screen_cannot_hold_beside_others(
    shape: tuple[int, int], scale: float
) -> None:
    pool, query = make_problem(8, 2, *shape, torch.float32)
    pool[:, ::2] *= scale
    found = assert_as_in_float64(pool, query, tol=0.0, max_iter=20)
    assert (found.num_iter > 10).all()


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("growth", [1.03, 0.97])
@pytest.mark.usefixtures("simd_level")
def test_rows_that_grow_and_shrink(shape: tuple[int, int], growth: float) -> None:
    """Each has a scale of its own where it is the largest so far."""
    pool, query = make_problem(10, 2, *shape, torch.float32)
    pool *= growth ** torch.arange(shape[0])[:, None]
    assert_as_in_float64(pool, query)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.usefixtures("simd_level")
def test_half_precision(shape: tuple[int, int], dtype: torch.dtype) -> None:
    pool, query = make_problem(9, 2, *shape, dtype)
    assert_as_in_float64(pool, query)


def test_one_large_row_beside_small_ones() -> None:
    """The bound is the largest row's, so that every small one is a contender."""
    pool, query = make_problem(10, 1, *SMALL, torch.float32)
    pool[0, 70] *= -1e6
    assert_as_in_float64(pool, query)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("simd_level")
def test_rows_with_a_single_entry(variant: str) -> None:
    """The largest integers there are, and products that are 0."""
    pool = torch.diag(torch.linspace(0.5, 2, 77))
    query = torch.linspace(1, 0.1, 77)[None] / 8
    assert_as_in_float64(pool[None], query, variant=variant, max_iter=60)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("simd_level")
def test_rows_of_every_scale_and_of_zeros(variant: str) -> None:
    pool, query = make_problem(12, 2, *SMALL, torch.float32)
    pool *= torch.logspace(-30, 1, SMALL[0])[
        torch.randperm(SMALL[0], generator=torch.Generator().manual_seed(1))
    ][:, None]
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


@pytest.mark.parametrize("candidates", [1, 2, 3, 5])
@pytest.mark.usefixtures("simd_level")
def test_fewer_candidates_than_wanted(candidates: int) -> None:
    pool, query = make_problem(14, 3, candidates, 50, torch.float32)
    assert_as_in_float64(pool, query, n_select=20)


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
