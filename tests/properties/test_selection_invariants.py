"""What must hold of any answer of the selection operators, whatever the problem."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hullft_ops
from hullft_ops import reference
from problems import DTYPES, VARIANTS, assert_equals_reference, of_query
from properties.selection_problems import (
    OPERATORS,
    Problem,
    assert_same_bits,
    integerize,
    lmo,
    problems,
    sift,
)

SELECTIONS = [*VARIANTS, "knn", "sift"]
# With n_select = 1 vanilla takes its step before it looks at the support, and the second atom's
# weight is cut off: what it leaves is no convex combination.
COMBINATIONS: dict[str, Any] = {"n_select": (2, 12), "candidates": (2, 40)}
FLOAT64 = [torch.float64]
# Distinct rows, room in the support and few steps. Where a line search ends between two atoms they
# correlate equally, and rounding orders them: that must not be the next choice.
GENERAL: dict[str, Any] = {
    "kinds": ["near"],
    "candidates": (16, 30),
    "dims": (12, 24),
    "n_select": (8, 12),
    "dtypes": FLOAT64,
    "max_iter": 4,
}


def select(operator: str, problem: Problem) -> hullft_ops.Selection:
    return hullft_ops.Selection(*OPERATORS[operator](problem)[:7])


def without_ties(operator: str, problem: Problem) -> Problem:
    """A pairwise step leaves its two atoms equal, and the next must choose between them."""
    return (
        replace(problem, max_iter=min(problem.max_iter, 1))
        if operator == "pairwise"
        else problem
    )


def rounding(problem: Problem) -> float:
    """Of a squared length: of the outputs' dtype, with room for sums of d and n terms."""
    wide = problem.pool.dtype == torch.float64
    length = (
        problem.query.double().norm(dim=-1).max()
        + problem.pool.double().norm(dim=-1).max()
    )
    return (1e-12 if wide else 1e-5) * (1.0 + length.item() ** 2)


@pytest.mark.parametrize("operator", SELECTIONS)
@given(problem=problems(**COMBINATIONS))
def test_weights_are_on_the_simplex_and_counts_sum_to_n(
    operator: str, problem: Problem
) -> None:
    found = select(operator, problem)
    n, k = problem.n_select, problem.candidates
    chosen = found.indices >= 0
    assert torch.equal(chosen.sum(-1), found.support_size)
    assert (found.support_size >= 1).all()
    assert (found.indices < k).all()
    assert (found.weights >= 0).all()
    assert (found.weights.diff(dim=-1) <= 0).all()
    assert (found.weights.double().sum(-1) - 1).abs().max() <= 1e-6
    assert (found.counts >= 0).all()
    assert torch.equal(found.counts.sum(-1), torch.full((problem.batch,), n))
    for past in (found.weights, found.counts):
        assert (past[~chosen] == 0).all()
    for row, used in zip(found.indices, chosen, strict=True):
        assert len(row[used].unique()) == used.sum()
    assert torch.equal(found.multiset().sort(-1).values, repeated_by_hand(found))


def repeated_by_hand(found: hullft_ops.Selection) -> torch.Tensor:
    rows = [
        i.repeat_interleave(c) for i, c in zip(found.indices, found.counts, strict=True)
    ]
    return torch.stack(rows).sort(-1).values


@pytest.mark.parametrize("operator", SELECTIONS)
@given(problem=problems(**COMBINATIONS))
def test_residual_and_gap_are_those_of_the_weights(
    operator: str, problem: Problem
) -> None:
    """Narrow outputs are rounded, so both are compared as squared lengths."""
    found = select(operator, problem)
    pool, query = problem.pool.double(), problem.query.double()
    rows = found.indices.clamp(min=0).unsqueeze(-1).expand(-1, -1, pool.shape[-1])
    point = torch.einsum("bnd,bn->bd", pool.gather(1, rows), found.weights.double())
    left = query - point
    bound = rounding(problem)
    # The recurrence subtracts near-equal numbers: of a squared residual it is exact to rounding.
    assert (found.residual.double() ** 2 - left.square().sum(-1)).abs().max() <= bound
    gap = torch.einsum("bkd,bd->bk", pool, left).max(-1).values - (left * point).sum(-1)
    assert (gap - found.gap.double()).abs().max() <= bound


@given(problem=problems())
def test_integerized_counts(problem: Problem) -> None:
    (counts,) = integerize(problem)
    assert (counts >= 0).all()
    assert (counts.sum(-1) == 3 * problem.n_select).all()


@pytest.mark.parametrize("operator", VARIANTS)
@given(problem=problems(**GENERAL))
def test_equals_the_reference(operator: str, problem: Problem) -> None:
    problem = without_ties(operator, problem)
    found = select(operator, problem)
    for b in range(problem.batch):
        expected = reference.fw_select(
            problem.pool[b],
            problem.query[b],
            problem.n_select,
            max_iter=problem.max_iter,
            variant=operator,
        )
        assert_equals_reference(of_query(found, b), expected)


@given(problem=problems(**{**GENERAL, "dtypes": DTYPES}))
def test_other_operators_equal_the_reference(problem: Problem) -> None:
    nearest, step = select("knn", problem), hullft_ops.LmoStep(*lmo(problem))
    picks = hullft_ops.SiftSelection(*sift(problem)).picks
    (counts,) = integerize(problem)
    for b in range(problem.batch):
        pool, query = problem.pool[b], problem.query[b]
        near = reference.knn_select(pool, query, problem.n_select)
        assert nearest.indices[b].tolist() == near.indices.tolist()
        at = reference.fw_lmo(pool, query, problem.current[b])
        assert step.vertex[b] == at.vertex
        assert abs(step.gamma[b].item() - at.gamma) <= rounding(problem)
        wanted = reference.sift_select(
            pool, query, problem.n_select, noise=problem.noise
        )
        assert picks[b].tolist() == wanted.picks
        by_hand = reference.integerize(
            pool, query, problem.weights[b], 3 * problem.n_select
        )
        assert counts[b].tolist() == by_hand.tolist()


@pytest.mark.parametrize("operator", [*VARIANTS, "knn"])
@given(problem=problems(**GENERAL), data=st.data())
def test_a_permutation_of_the_pool(
    operator: str, problem: Problem, data: st.DataObject
) -> None:
    """Of distinct candidates: the same rows with the same weights, bit for bit."""
    problem = without_ties(operator, problem)
    order = torch.tensor(data.draw(st.permutations(range(problem.candidates))))
    found, wanted = (
        select(operator, problem.with_rows(order)),
        select(operator, problem),
    )
    there = torch.where(found.indices >= 0, order[found.indices.clamp(min=0)], -1)
    assert_same_bits(found._replace(indices=there), wanted)


@given(problem=problems(**GENERAL), data=st.data())
def test_a_permutation_of_what_goes_by_index(
    problem: Problem, data: st.DataObject
) -> None:
    """SIFT orders what it picked equally often by index, and swaps are tried by index."""
    order = torch.tensor(data.draw(st.permutations(range(problem.candidates))))
    permuted = problem.with_rows(order)
    found, wanted = (hullft_ops.SiftSelection(*sift(p)) for p in (permuted, problem))
    assert torch.equal(order[found.picks], wanted.picks)
    assert torch.equal(found.variance, wanted.variance)
    counts, moved = (
        hullft_ops.integerize(p.pool, p.query, p.weights, 3 * p.n_select, swap_passes=0)
        for p in (problem, permuted)
    )
    assert torch.equal(moved, counts[:, order])


def rotated(problem: Problem, seed: int) -> Problem:
    d = problem.pool.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return problem.mapped(lambda t: t @ q)


@pytest.mark.parametrize("operator", VARIANTS)
@given(problem=problems(dtypes=FLOAT64), seed=st.integers(0, 100))
def test_an_orthogonal_transformation(
    operator: str, problem: Problem, seed: int
) -> None:
    """Rounding may decide between equal candidates, so the steps may be others. But a gap bounds
    how far half a squared residual lies above the smallest, which is the same before and after."""
    found, turned = select(operator, problem), select(operator, rotated(problem, seed))
    half, half_turned = found.residual**2 / 2, turned.residual**2 / 2
    room = torch.maximum(found.gap, turned.gap) + rounding(problem)
    assert ((half - half_turned).abs() <= room).all()


@given(problem=problems(**GENERAL), seed=st.integers(0, 100))
def test_an_orthogonal_transformation_without_ties(problem: Problem, seed: int) -> None:
    """Inner products move by rounding only, about d units in the last place, and no choice is so
    close: the same rows, and weights that a few line searches amplify."""
    turned = rotated(problem, seed)
    for operator in ("vanilla", "knn", "sift"):
        a, b = select(operator, problem), select(operator, turned)
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.counts, b.counts)
        assert (a.weights - b.weights).abs().max() <= 1e-10
    for a, b in zip(lmo(problem), lmo(turned), strict=True):
        assert (a - b).abs().max() <= 1e-10


@given(problem=problems(dtypes=FLOAT64, max_iter=60))
@settings(max_examples=40)
def test_more_steps_never_leave_more(problem: Problem) -> None:
    """Exact line search: half a squared residual never grows, nor falls by more than the gap."""
    for variant in VARIANTS:
        fewer = select(variant, problem)
        more = select(variant, replace(problem, max_iter=problem.max_iter + 1))
        fell = (fewer.residual**2 - more.residual**2) / 2
        assert (fell >= -rounding(problem)).all()
        assert (fell <= fewer.gap + rounding(problem)).all()
