"""What must hold of any answer of the selection operators, whatever the problem."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hullft_ops
from hullft_ops import reference
from problems import (
    DTYPES,
    METHODS,
    VARIANTS,
    assert_consistent,
    assert_equals_reference,
    of_query,
)
from properties.selection_problems import (
    OPERATORS,
    Problem,
    assert_same_bits,
    integerize,
    lmo,
    problems,
)

# With n_select = 1 vanilla takes its step before it looks at the support, and the second atom's
# weight is cut off: the other weights are no convex combination.
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


def rounding(problem: Problem) -> float:
    """Of a squared length: of the outputs' dtype, with room for sums of d and n terms."""
    unit = 1e-12 if problem.pool.dtype == torch.float64 else 1e-5
    longest_query = problem.query.double().norm(dim=-1).max()
    longest_row = problem.pool.double().norm(dim=-1).max()
    length = (longest_query + longest_row).item()
    return unit * (1.0 + length**2)


@pytest.mark.parametrize("operator", METHODS)
@given(problem=problems(**COMBINATIONS))
def test_weights_counts_residual_and_gap_are_consistent(
    operator: str, problem: Problem
) -> None:
    found = select(operator, problem)
    assert_consistent(
        problem.pool, problem.query, found, problem.n_select, rounding(problem)
    )


@given(problem=problems())
def test_integerized_counts(problem: Problem) -> None:
    (counts,) = integerize(problem)

    assert (counts >= 0).all()
    assert (counts.sum(-1) == 3 * problem.n_select).all()


@pytest.mark.parametrize("operator", VARIANTS)
@given(problem=problems(**GENERAL))
def test_equals_the_reference(operator: str, problem: Problem) -> None:
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
    nearest = select("knn", problem)
    step = hullft_ops.LmoStep(*lmo(problem))
    picks = hullft_ops.SiftSelection(*OPERATORS["sift"](problem)).picks
    (counts,) = integerize(problem)

    for b in range(problem.batch):
        pool = problem.pool[b]
        query = problem.query[b]
        near = reference.knn_select(pool, query, problem.n_select)

        assert nearest.indices[b].tolist() == near.indices.tolist()

        at = reference.fw_lmo(pool, query, problem.current[b])

        assert step.vertex[b] == at.vertex
        assert abs(step.gamma[b].item() - at.gamma) <= rounding(problem)

        picked = reference.sift_select(
            pool,
            query,
            problem.n_select,
            noise=problem.noise,
        )

        assert picks[b].tolist() == picked.picks

        by_hand = reference.integerize(
            pool,
            query,
            problem.weights[b],
            3 * problem.n_select,
        )

        assert counts[b].tolist() == by_hand.tolist()


@pytest.mark.cpu_only("on CUDA the order of a residual's sums goes by place")
@pytest.mark.parametrize("operator", [*VARIANTS, "knn"])
@given(problem=problems(**GENERAL), data=st.data())
def test_a_permutation_of_the_pool(
    operator: str, problem: Problem, data: st.DataObject
) -> None:
    """Of distinct candidates: the same rows with the same weights, bit for bit."""
    order = torch.tensor(data.draw(st.permutations(range(problem.candidates))))
    permuted = select(operator, problem.with_rows(order))
    expected = select(operator, problem)

    is_used = permuted.indices >= 0
    original = order[permuted.indices.clamp(min=0)]
    moved_back = permuted._replace(indices=torch.where(is_used, original, -1))

    assert_same_bits(moved_back, expected)


@given(problem=problems(**GENERAL), data=st.data())
def test_a_permutation_of_what_goes_by_index(
    problem: Problem, data: st.DataObject
) -> None:
    """SIFT orders what it picked equally often by index, and swaps are tried by index."""
    order = torch.tensor(data.draw(st.permutations(range(problem.candidates))))
    permuted = problem.with_rows(order)
    moved = hullft_ops.SiftSelection(*OPERATORS["sift"](permuted))
    expected = hullft_ops.SiftSelection(*OPERATORS["sift"](problem))

    assert torch.equal(order[moved.picks], expected.picks)
    assert torch.equal(moved.variance, expected.variance)

    counts = without_swaps(problem)

    assert torch.equal(without_swaps(permuted), counts[:, order])


def without_swaps(problem: Problem) -> torch.Tensor:
    return hullft_ops.integerize(
        problem.pool,
        problem.query,
        problem.weights,
        3 * problem.n_select,
        swap_passes=0,
    )


def rotated(problem: Problem, seed: int) -> Problem:
    d = problem.pool.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr(matrix)
    return problem.mapped(lambda t: t @ q)


@pytest.mark.parametrize("operator", VARIANTS)
@given(problem=problems(dtypes=FLOAT64), seed=st.integers(0, 100))
def test_an_orthogonal_transformation(
    operator: str, problem: Problem, seed: int
) -> None:
    """Rounding may decide between equal candidates, so the steps may be others. But a gap bounds
    how far half a squared residual lies above the smallest, which is the same before and after."""
    found = select(operator, problem)
    turned = select(operator, rotated(problem, seed))
    half = found.residual**2 / 2
    half_turned = turned.residual**2 / 2
    room = torch.maximum(found.gap, turned.gap) + rounding(problem)

    assert ((half - half_turned).abs() <= room).all()


@given(problem=problems(dtypes=FLOAT64, max_iter=60))
@settings(max_examples=40)
def test_more_steps_never_leave_more(problem: Problem) -> None:
    """Exact line search: half a squared residual never grows, nor falls by more than the gap."""
    one_step_more = replace(problem, max_iter=problem.max_iter + 1)

    for variant in VARIANTS:
        fewer = select(variant, problem)
        more = select(variant, one_step_more)
        fell = (fewer.residual**2 - more.residual**2) / 2

        assert (fell >= -rounding(problem)).all()
        assert (fell <= fewer.gap + rounding(problem)).all()
