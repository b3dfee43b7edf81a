"""sift_select against the definition, and what its picks and variances must be."""

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from problems import (
    DTYPES,
    assert_equals_reference,
    make_problem,
    of_query,
    remembered,
)
from sift_checks import assert_sift_within_float32

reference_sift_select = remembered(reference.sift_select)
NOISES = [0.01, 0.2]
# Scores nearer than this, of the variance before any pick, are told apart by rounding alone.
ROUNDING = 1e-12


def assert_equals_sift(
    selection: hullft_ops.SiftSelection,
    expected: reference.ReferenceSift,
    *,
    tolerance: float = 1e-10,
) -> None:
    """One unbatched selection against the oracle: the same picks in the same order."""
    assert selection.picks.tolist() == expected.picks

    variance = torch.tensor(expected.variance, dtype=torch.float64)
    error = selection.variance.double() - variance

    assert error.abs().max() <= tolerance

    assert_equals_reference(
        selection.selection,
        expected.selection,
        weight_tolerance=max(tolerance, 1e-10),
    )


def assert_greedy(
    pool: torch.Tensor,
    query: torch.Tensor,
    picks: list[int],
    noise: float,
    *,
    rounding: float = ROUNDING,
) -> None:
    """Given the picks before it, every pick is within rounding of the best one."""
    x = pool.double()
    targets = torch.atleast_2d(query.double())
    before = targets.square().sum()

    for i, pick in enumerate(picks):
        left = reference.variance_after(x, targets, picks[:i], noise)
        smallest = left.min()

        assert left[pick] <= smallest + rounding * before


SHAPES = [
    (1, 3, 4),
    (2, 1, 1),
    (7, 5, 3),
    (33, 17, 9),
    (61, 20, 20),
    (200, 70, 12),
]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("candidates", "dim", "n_select"), SHAPES)
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(
    dtype: torch.dtype,
    candidates: int,
    dim: int,
    n_select: int,
    noise: float,
    device: torch.device,
) -> None:
    pool, query = make_problem(candidates * dim, 3, candidates, dim, dtype, spread=1.5)
    pool = pool.flip(1)
    sel = hullft_ops.sift_select(pool, query, n_select, noise=noise)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6

    for b in range(3):
        if device.type != "cpu" and dtype != torch.float64:
            assert_sift_within_float32(of_query(sel, b), pool[b], query[b], noise)

            continue

        expected = reference_sift_select(pool[b], query[b], n_select, noise=noise)
        assert_equals_sift(of_query(sel, b), expected, tolerance=tolerance)


def test_more_columns_than_are_kept() -> None:
    """With each pick comes the column of its twin, which is never picked: 180 of them, 122 kept."""
    axes = torch.eye(100, dtype=torch.float64)
    pool = torch.stack([0.99 * axes, axes], dim=1).reshape(200, 100)
    query = torch.linspace(1.0, 0.5, 100, dtype=torch.float64)
    sel = hullft_ops.sift_select(pool, query, 90, noise=0.01)
    expected = reference.sift_select(pool, query, 90, noise=0.01)

    assert sel.picks.tolist() == list(range(1, 180, 2))

    assert_equals_sift(sel, expected)


def test_opposite_rows_tell_as_much() -> None:
    """Variance knows no sign: a row opposite to the query is as good as one along it."""
    pool = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    query = torch.tensor([2.0, 0.0], dtype=torch.float64)
    sel = hullft_ops.sift_select(pool, query, 3)

    assert sel.picks.tolist() == [1, 1, 1]

    picks = torch.arange(1, 4, dtype=torch.float64)
    expected = 4 * 0.01 / (picks + 0.01)

    assert (sel.variance - expected).abs().max() < 1e-12


def test_several_targets() -> None:
    pool, _ = make_problem(21, 3, 40, 12, spread=2.0)
    targets = []
    for seed in (1, 2, 3, 4):
        _, target = make_problem(seed, 3, 1, 12)
        targets.append(target)

    query = torch.stack(targets, dim=1)
    sel = hullft_ops.sift_select(pool, query, 10, noise=0.1)

    for b in range(3):
        expected = reference.sift_select(pool[b], query[b], 10, noise=0.1)
        assert_equals_sift(of_query(sel, b), expected)

    one = hullft_ops.sift_select(pool, query[:, :1], 10, noise=0.1)
    alone = hullft_ops.sift_select(pool, query[:, 0], 10, noise=0.1)

    assert all(map(torch.equal, one, alone))


def test_equal_counts_go_to_the_lowest_index() -> None:
    pool = torch.eye(6, dtype=torch.float64)
    query = torch.tensor([1.0, 3.0, 2.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    sel = hullft_ops.sift_select(pool, query, 3, noise=1e-6)

    assert sel.picks.tolist() == [1, 4, 2]
    assert sel.indices.tolist() == [1, 2, 4]
    assert sel.counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_query_and_zero_rows(dtype: torch.dtype) -> None:
    pool, query = make_problem(9, 2, 12, 6, dtype)
    nothing = hullft_ops.sift_select(pool, torch.zeros_like(query), 3)

    assert (nothing.picks == 0).all()  # no pick helps: the lowest index
    assert (nothing.variance == 0).all()

    pool[:, :4] = 0
    sel = hullft_ops.sift_select(pool, query, 3)

    assert (sel.picks >= 4).all()

    zeros = hullft_ops.sift_select(torch.zeros_like(pool), query, 3)

    assert (zeros.picks == 0).all()
    assert (zeros.variance - 1).abs().max() < 1e-2


@pytest.mark.parametrize("noise", [1e-14, 1e-6, 1e6])
def test_extreme_noise(noise: float) -> None:
    """More picks than dimensions, with hardly any noise: the variance left is rounding."""
    pool, query = make_problem(22, 3, 25, 4, spread=2.0)
    sel = hullft_ops.sift_select(pool, query, 12, noise=noise)

    for b in range(3):
        first_picks = sel.picks[b, :4].tolist()
        assert_greedy(pool[b], query[b], first_picks, noise)

    assert (sel.variance >= 0).all()
    assert (sel.variance.diff(dim=-1) <= 0).all()


def test_more_picks_than_candidates() -> None:
    pool, query = make_problem(16, 2, 8, 5, spread=2.0)
    sel = hullft_ops.sift_select(pool, query, 500, noise=0.2)

    assert (sel.counts.sum(-1) == 500).all()

    for b in range(2):
        first_picks = sel.picks[b, :60].tolist()
        assert_greedy(pool[b], query[b], first_picks, 0.2)
