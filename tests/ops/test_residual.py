"""The residual that a selection reports fits its own weights, however small it is."""

import pytest
import torch

import hullft_ops
from problems import VARIANTS, AnySelection, select


@pytest.mark.parametrize("method", [*VARIANTS, "sift"])
@pytest.mark.parametrize("dim", [2, 3, 40])
@pytest.mark.parametrize("norm", [1.0, 100.0])
@pytest.mark.usefixtures("simd_level")
def test_between_two_rows(method: str, dim: int, norm: float) -> None:
    """The square, as the difference of inner products, would be good to 1e-16 of the query's."""
    generator = torch.Generator().manual_seed(dim)
    pool = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    pool *= norm / pool.norm(dim=-1, keepdim=True)
    query = torch.tensor([0.3, 0.7], dtype=torch.float64) @ pool

    if method == "sift":
        selection = select(method, pool, query, 10, noise=1e-3)
    else:
        selection = select(method, pool, query, 7, tol=0.0)

    assert_own_residual(selection, pool, query, 1e-3 * norm, norm)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-7, 1e-5])
@pytest.mark.usefixtures("simd_level")
def test_a_query_much_shorter_than_the_rows(variant: str, length: float) -> None:
    """Within their hull, so that the mix comes to be as short."""
    generator = torch.Generator().manual_seed(0)

    for _ in range(20):
        pool = torch.randn(100, 8, generator=generator, dtype=torch.float64)
        pool /= pool.norm(dim=-1, keepdim=True)
        query = torch.randn(8, generator=generator, dtype=torch.float64)
        query *= length / query.norm()

        selection = hullft_ops.fw_select(
            pool,
            query,
            100,
            variant=variant,
            tol=0.0,
            max_iter=2000,
        )

        assert_own_residual(selection, pool, query, 0.1, 1.0)


def assert_own_residual(
    selection: AnySelection,
    pool: torch.Tensor,
    query: torch.Tensor,
    longest: float,
    norm: float,
) -> None:
    m = int(selection.support_size)
    mix = selection.weights[:m] @ pool[selection.indices[:m]]
    expected = (query - mix).norm().item()

    assert expected <= longest
    assert abs(selection.residual.item() - expected) <= 1e-14 * norm
