"""What float32 rows promise on every device: the weights of the optimum, and its support."""

from collections.abc import Callable

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from lstsq_problems import spectra


@pytest.mark.parametrize("solver", [hullft_ops.simplex_lstsq, hullft_ops.nnls])
@pytest.mark.parametrize("rows", [12, 32, 100])
@pytest.mark.parametrize("width", [1.42, 1.72, 1.97])
def test_weights_and_supports_up_to_a_condition_number(
    solver: Callable, rows: int, width: float
) -> None:
    """Of a shared pool for one query and for many, and of pools of their own."""
    pool, query = spectra(0, 9, rows, width)

    oracle = getattr(reference, solver.__name__)
    expected = torch.stack([oracle(pool, q).weights for q in query])
    size = expected.sum(1).max()

    for weights in (
        solver(pool, query).weights,
        solver(pool.repeat(9, 1, 1), query).weights,
        torch.stack([solver(pool, q).weights for q in query]),
    ):
        assert (weights - expected).abs().max() <= 1e-6 * size
        assert torch.equal(weights > 0, expected > 0)
