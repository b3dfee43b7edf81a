"""The variants "away" and "pairwise" of fw_select: steps, gaps and where they stop."""

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from problems import assert_consistent, make_problem


@pytest.mark.parametrize(
    ("variant", "bounds"),
    [
        ("pairwise", {"cpu": 2e-7, "cuda": 1e-6}),
        ("away", {"cpu": 1e-5, "cuda": 2e-5}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("simd_level")
def test_golden_gap(
    golden: dict[str, torch.Tensor],
    variant: str,
    bounds: dict[str, float],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    pool = golden["pool"].to(dtype)
    query = golden["query"].to(dtype)
    vanilla = hullft_ops.fw_select(pool, query, 50)
    sel = hullft_ops.fw_select(pool, query, 50, variant=variant)
    bound = bounds[device.type if dtype == torch.float32 else "cpu"]

    assert sel.gap.max() < bound
    assert (sel.residual <= vanilla.residual).all()
    assert (sel.num_iter <= 250).all()


@pytest.mark.parametrize("n_select", [5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairwise_takes_the_lower_of_two_level_atoms(
    golden: dict[str, torch.Tensor],
    dtype: torch.dtype,
    n_select: int,
    float32_tolerance: float,
) -> None:
    """A step that was not cut short leaves its atoms equal. Rounding must not choose between them:
    the steps are the reference's, in every dtype."""
    pool = golden["pool"].to(dtype)
    query = golden["query"].to(dtype)
    sel = hullft_ops.fw_select(pool, query, n_select, variant="pairwise")

    for b in range(len(pool)):
        expected = reference.fw_select(pool[b], query[b], n_select, variant="pairwise")
        m = len(expected.indices)

        assert sel.support_size[b] == m
        assert sel.indices[b, :m].tolist() == expected.indices.tolist()
        assert sel.counts[b, :m].tolist() == expected.counts.tolist()

        error = sel.weights[b, :m] - expected.weights

        assert error.abs().max() < float32_tolerance


# A shorter query would ask for 1e-16, which the rounding of the weights alone exceeds.
@pytest.mark.parametrize("length", [1.0, 1e-5])
@pytest.mark.parametrize("tol", [1e-8, 1e-9, 1e-10])
@pytest.mark.parametrize("variant", ["away", "pairwise"])
@pytest.mark.cpu_only("on CUDA the noise of products is that of the query alone")
def test_tol_is_of_the_residual_and_not_of_its_noise(
    variant: str, tol: float, length: float
) -> None:
    """Of vectors of norm 1 the square made of products is good to 1e-16, its root to 1e-8."""
    inside = torch.tensor([0.4, 0.0, 0.3, 0.1, 0.2, 0.0], dtype=torch.float64)
    within = tol * length

    for seed in range(10):
        pool, _ = make_problem(seed, 1, 6, 30)
        pool = pool[0]
        centre = pool.T @ inside
        # Far from the query only the rows are long.
        pool = pool - (1 - length) * centre
        query = length * centre

        relative = within / query.norm().item()
        options = {"variant": variant, "max_iter": 5000, "tol": relative}
        sel = hullft_ops.fw_select(pool, query, 6, **options)
        expected = reference.fw_select(pool, query, 6, **options)

        assert (sel.residual.item() < within) == (expected.residual < within)

        steps = sel.num_iter.item()
        if steps > 1:
            options = {"variant": variant, "max_iter": steps - 1, "tol": 0.0}
            before = hullft_ops.fw_select(pool, query, 6, **options)

            assert before.residual.item() >= within


@pytest.mark.parametrize("n_select", [6, 20])
@pytest.mark.parametrize("variant", ["away", "pairwise"])
def test_the_optimum_ends_it_without_a_tolerance(variant: str, n_select: int) -> None:
    """There, slopes are rounding. They must not move weights back and forth until max_iter."""
    options = {"variant": variant, "tol": 0.0, "max_iter": 20_000}
    for seed in range(20):
        pool, query = make_problem(seed, 1, 20, 30, spread=1.0)
        sel = hullft_ops.fw_select(pool[0], query[0], n_select, **options)
        scaled = hullft_ops.fw_select(pool[0] / 8, query[0] / 8, n_select, **options)

        assert sel.num_iter < 20_000
        assert torch.equal(scaled.num_iter, sel.num_iter)

        m = int(sel.support_size)
        held = pool[0, sel.indices[:m]]
        current = sel.weights[:m] @ held
        slopes = (held - current) @ (query[0] - current)

        assert slopes.abs().max() < 1e-13

        if n_select == 20:
            assert sel.gap < 1e-13


@pytest.mark.parametrize("variant", ["away", "pairwise"])
def test_full_support_goes_on_within_itself(variant: str) -> None:
    """With n_select atoms the weights become the best for them, which vanilla never reaches."""
    pool, query = make_problem(12, 8, 100, 32)
    sel = hullft_ops.fw_select(pool, query, 5, variant=variant, max_iter=3000)

    assert (sel.support_size == 5).all()

    for b in range(8):
        atoms = pool[b, sel.indices[b]]
        best = hullft_ops.fw_select(
            atoms, query[b], 5, variant="pairwise", max_iter=3000, tol=0.0
        )

        assert abs(best.residual.item() - sel.residual[b].item()) < 1e-9


def test_many_drops_evict_and_recompute_columns() -> None:
    """A small support over a large pool: more atoms come and go than columns are kept."""
    pool, query = make_problem(13, 4, 2000, 64, spread=2.0)
    sel = hullft_ops.fw_select(
        pool, query, 60, variant="pairwise", max_iter=4000, tol=0.0
    )

    assert_consistent(pool, query, sel, 60)

    assert (sel.num_iter > 500).all()
