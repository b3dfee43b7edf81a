"""integerize against the reference, and the properties that the published code lacks."""

import itertools

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from problems import DTYPES, ON_VALUES, make_problem


def random_weights(seed: int, batch: int, m: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(batch, m, generator=generator, dtype=torch.float64) ** 3
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n_select"), [(1, 3), (2, 1), (5, 7), (9, 40), (21, 20)])
@pytest.mark.parametrize("swap_passes", [0, 1, 2, 5])
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(
    dtype: torch.dtype, m: int, n_select: int, swap_passes: int
) -> None:
    support, query = make_problem(m * n_select, 3, m, 12, dtype, spread=1.5)
    weights = random_weights(m, 3, m)
    counts = hullft_ops.integerize(
        support, query, weights, n_select, swap_passes=swap_passes
    )
    for b in range(3):
        expected = reference.integerize(
            support[b], query[b], weights[b], n_select, swap_passes=swap_passes
        )
        assert counts[b].tolist() == expected.tolist()


def test_repeated_rows_equal_reference() -> None:
    """Their ties go to the lowest index, whatever rounding makes of equal losses."""
    support, query = make_problem(4, 20, 5, 30, spread=1.5)
    repeated = support.repeat(1, 2, 1)
    weights = random_weights(5, 20, 10)
    counts = hullft_ops.integerize(repeated, query, weights, 20)
    for b in range(20):
        expected = reference.integerize(repeated[b], query[b], weights[b], 20)
        assert counts[b].tolist() == expected.tolist()


@pytest.mark.usefixtures("simd_level")
def test_equals_the_counts_of_fw_select(golden: dict[str, torch.Tensor]) -> None:
    pool, query = golden["pool"].double(), golden["query"].double()
    sel = hullft_ops.fw_select(pool, query, 50)
    support = pool.gather(1, sel.indices.clamp(min=0).unsqueeze(-1).expand(-1, -1, 384))
    counts = hullft_ops.integerize(
        support, query, sel.weights, 50, support_sizes=sel.support_size
    )
    assert torch.equal(counts, sel.counts)


def test_counts_never_negative_on_wild_targets() -> None:
    """Targets far outside the hull make swaps drain an atom again and again."""
    support, query = make_problem(0, 2000, 8, 3, spread=3.0)
    query = query * torch.linspace(-50, 50, 2000, dtype=torch.float64).unsqueeze(1)
    counts = hullft_ops.integerize(
        support, query, random_weights(1, 2000, 8), 50, swap_passes=4
    )
    assert (counts >= 0).all()
    assert (counts.sum(-1) == 50).all()


@pytest.mark.usefixtures("simd_level")
def test_swaps_never_raise_the_loss() -> None:
    support, query = make_problem(3, 50, 10, 6)
    weights = random_weights(2, 50, 10)

    def loss(counts: torch.Tensor) -> torch.Tensor:
        mean = torch.einsum("bmd,bm->bd", support, counts.double() / 30)
        return (query - mean).square().sum(-1)

    losses = [
        loss(hullft_ops.integerize(support, query, weights, 30, swap_passes=passes))
        for passes in (0, 1, 2, 3)
    ]
    for before, after in itertools.pairwise(losses):
        assert (after <= before + 1e-14).all()
    assert (losses[-1] < losses[0]).any()


@pytest.mark.parametrize("norm", [1.0, 2.0**-40, 2.0**40])
def test_swaps_that_gain_less_than_the_documented_bound_are_none(norm: float) -> None:
    """Around a point of norm 1, differences scaled by 2^-25 leave gains below 1e-14."""
    support, query = make_problem(3, 50, 10, 6)
    weights = random_weights(2, 50, 10)

    def around_a_point(vectors: torch.Tensor, scale: float) -> torch.Tensor:
        return norm * torch.cat(
            [torch.ones_like(vectors[..., :1]), scale * vectors], -1
        )

    def swaps(scale: float) -> bool:
        unswapped, swapped = (
            hullft_ops.integerize(
                around_a_point(support, scale),
                around_a_point(query, scale),
                weights,
                30,
                swap_passes=passes,
            )
            for passes in (0, 2)
        )
        return not torch.equal(unswapped, swapped)

    assert swaps(1.0)
    assert not swaps(2.0**-25)


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_weights_are_normalised(scale: float) -> None:
    support, query = make_problem(4, 4, 6, 5)
    weights = random_weights(3, 4, 6)
    expected = hullft_ops.integerize(support, query, weights, 20)
    assert torch.equal(
        hullft_ops.integerize(support, query, weights * scale, 20), expected
    )


def test_negative_weights_count_as_zero() -> None:
    support, query = make_problem(5, 1, 4, 5)
    weights = torch.tensor([[0.5, -3.0, 0.5, 0.0]], dtype=torch.float64)
    expected = hullft_ops.integerize(support, query, weights.clamp(min=0), 9)
    assert torch.equal(hullft_ops.integerize(support, query, weights, 9), expected)


def test_all_weights_zero_is_uniform() -> None:
    support, query = make_problem(6, 1, 4, 5)
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    for weights in (torch.zeros(1, 4), torch.full((1, 4), -1.0)):
        counts = hullft_ops.integerize(support, query, weights, 10)
        assert torch.equal(counts, hullft_ops.integerize(support, query, uniform, 10))


@pytest.mark.usefixtures("simd_level")
def test_ties_go_to_the_lowest_index() -> None:
    row, query = make_problem(7, 1, 1, 5)
    counts = hullft_ops.integerize(row.repeat(1, 4, 1), query, torch.ones(1, 4), 6)
    assert counts.tolist() == [[2, 2, 1, 1]] or counts.tolist() == [[3, 1, 1, 1]]
    expected = reference.integerize(row[0].repeat(4, 1), query[0], torch.ones(4), 6)
    assert counts[0].tolist() == expected.tolist()


@pytest.mark.usefixtures("simd_level")
def test_ragged_and_unbatched() -> None:
    support, query = make_problem(8, 3, 7, 5)
    weights = random_weights(4, 3, 7)
    sizes = torch.tensor([7, 2, 4])
    for b, size in enumerate(sizes.tolist()):
        support[b, size:] = float("nan")
        weights[b, size:] = float("nan")
    counts = hullft_ops.integerize(support, query, weights, 12, support_sizes=sizes)
    for b, size in enumerate(sizes.tolist()):
        alone = hullft_ops.integerize(
            support[b, :size], query[b], weights[b, :size], 12
        )
        assert counts[b, :size].tolist() == alone.tolist()
        assert (counts[b, size:] == 0).all()


def test_large() -> None:
    support, query = make_problem(9, 1, 1000, 16)
    counts = hullft_ops.integerize(
        support[0], query[0], random_weights(5, 1, 1000)[0], 10_000
    )
    assert counts.sum() == 10_000
    assert (counts >= 0).all()


@pytest.mark.cpu_only(ON_VALUES)
def test_weights_not_finite() -> None:
    support, query = make_problem(10, 2, 3, 5)
    weights = torch.ones(2, 3)
    weights[1, 2] = float("inf")
    with pytest.raises(
        ValueError, match=r"integerize: weights\[1\] has NaN or infinity"
    ):
        hullft_ops.integerize(support, query, weights, 4)
