"""SIFT answers whose state is float32, checked against the definition."""

import torch

import hullft_ops
from hullft_ops import reference

FLOAT32_ROUNDING = 1e-5
"""Scores of unit vectors nearer than this are told apart by the rounding of a float32 state."""


def assert_sift_within_float32(
    found: hullft_ops.SiftSelection,
    pool: torch.Tensor,
    query: torch.Tensor,
    noise: float,
) -> None:
    """One query, [d] or [m, d]: every pick is within rounding of the best after those before it,
    and the rest is what the picks make it."""
    x, q = pool.double(), query.double().reshape(-1, pool.shape[-1])
    picks = found.picks.tolist()
    for i, pick in enumerate(picks):
        left = reference.variance_after(x, q, picks[:i], noise)
        assert left[pick] - left.min() <= FLOAT32_ROUNDING
        assert abs(found.variance[i] - left[pick]) <= FLOAT32_ROUNDING
    counts = torch.bincount(torch.tensor(picks), minlength=len(x))
    support = sorted(set(picks), key=lambda k: (-counts[k].item(), k))
    m = len(support)
    assert found.indices.tolist() == support + [-1] * (len(picks) - m)
    assert found.counts.tolist() == counts[support].tolist() + [0] * (len(picks) - m)
    assert (found.weights - found.counts / len(picks)).abs().max() <= 1e-6
    assert (found.support_size.item(), found.num_iter.item()) == (m, len(picks))
    mean = x[picks].mean(0)
    r = q.mean(0) - mean
    assert abs(found.residual - r.norm()) <= FLOAT32_ROUNDING
    assert abs(found.gap - ((x @ r).max() - r @ mean)) <= FLOAT32_ROUNDING
