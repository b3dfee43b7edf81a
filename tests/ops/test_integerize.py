"""integerize against the reference, and the properties that the published code lacks."""

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from problems import DTYPES, make_problem, remembered

reference_integerize = remembered(reference.integerize)
SIZES = [
    (1, 3),
    (2, 1),
    (5, 7),
    (9, 40),
    (21, 20),
]


def random_weights(seed: int, batch: int, m: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(batch, m, generator=generator, dtype=torch.float64) ** 3
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n_select"), SIZES)
@pytest.mark.parametrize("swap_passes", [0, 1, 2, 5])
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(
    dtype: torch.dtype, m: int, n_select: int, swap_passes: int
) -> None:
    support, query = make_problem(m * n_select, 3, m, 12, dtype, spread=1.5)
    weights = random_weights(m, 3, m)
    counts = hullft_ops.integerize(
        support,
        query,
        weights,
        n_select,
        swap_passes=swap_passes,
    )

    for b in range(3):
        expected = reference_integerize(
            support[b],
            query[b],
            weights[b],
            n_select,
            swap_passes=swap_passes,
        )
        assert counts[b].tolist() == expected.tolist()


@pytest.mark.usefixtures("simd_level")
def test_repeated_rows_equal_reference() -> None:
    """Their ties go to the lowest index, whatever rounding makes of equal losses."""
    support, query = make_problem(4, 20, 5, 30, spread=1.5)
    repeated = support.repeat(1, 2, 1)
    weights = random_weights(5, 20, 10)
    counts = hullft_ops.integerize(repeated, query, weights, 20)

    for b in range(20):
        expected = reference.integerize(repeated[b], query[b], weights[b], 20)
        assert counts[b].tolist() == expected.tolist()


@pytest.mark.parametrize("norm", [1.0, 2.0**-40, 2.0**40])
def test_swaps_that_gain_less_than_the_documented_bound_are_none(norm: float) -> None:
    """Around a point of norm 1, differences scaled by 2^-25 leave gains below 1e-14."""
    support, query = make_problem(3, 50, 10, 6)
    weights = random_weights(2, 50, 10)

    def around_a_point(vectors: torch.Tensor, scale: float) -> torch.Tensor:
        ones = torch.ones_like(vectors[..., :1])
        return norm * torch.cat([ones, scale * vectors], -1)

    def swaps(scale: float) -> bool:
        rows = around_a_point(support, scale)
        target = around_a_point(query, scale)
        unswapped = hullft_ops.integerize(rows, target, weights, 30, swap_passes=0)
        swapped = hullft_ops.integerize(rows, target, weights, 30, swap_passes=2)
        return not torch.equal(unswapped, swapped)

    assert swaps(1.0)
    assert not swaps(2.0**-25)


def test_all_weights_zero_is_uniform() -> None:
    support, query = make_problem(6, 1, 4, 5)
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    expected = hullft_ops.integerize(support, query, uniform, 10)

    for weights in (torch.zeros(1, 4), torch.full((1, 4), -1.0)):
        counts = hullft_ops.integerize(support, query, weights, 10)
        assert torch.equal(counts, expected)
