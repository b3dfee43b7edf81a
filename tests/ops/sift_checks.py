"""SIFT answers whose state is float32, checked against the definition."""

import torch

import hullft_ops
from hullft_ops import reference

FLOAT32_ROUNDING = 1e-5
"""Scores of unit vectors nearer than this are told apart by the rounding of a float32 state."""


def assert_sift_within_float32(
    selection: hullft_ops.SiftSelection,
    pool: torch.Tensor,
    query: torch.Tensor,
    noise: float,
) -> None:
    """One query, [d] or [m, d]: every pick is within rounding of the best after those before it,
    and the rest is what the picks make it."""
    x = pool.double()
    targets = query.double().reshape(-1, pool.shape[-1])
    picks = selection.picks.tolist()

    for i, pick in enumerate(picks):
        left = reference.variance_after(x, targets, picks[:i], noise)

        assert left[pick] - left.min() <= FLOAT32_ROUNDING
        assert abs(selection.variance[i] - left[pick]) <= FLOAT32_ROUNDING

    counts = torch.bincount(selection.picks, minlength=len(x))
    support = sorted(set(picks), key=lambda row: (-counts[row].item(), row))
    m = len(support)
    rest = len(picks) - m

    assert selection.indices[:m].tolist() == support
    assert selection.indices[m:].tolist() == [-1] * rest
    assert torch.equal(selection.counts[:m], counts[support])
    assert selection.counts[m:].tolist() == [0] * rest
    assert selection.support_size.item() == m
    assert selection.num_iter.item() == len(picks)

    shares = selection.counts / len(picks)

    assert (selection.weights - shares).abs().max() <= 1e-6

    mean = x[picks].mean(0)
    r = targets.mean(0) - mean
    gap = (x @ r).max() - r @ mean

    assert abs(selection.residual - r.norm()) <= FLOAT32_ROUNDING
    assert abs(selection.gap - gap) <= FLOAT32_ROUNDING
