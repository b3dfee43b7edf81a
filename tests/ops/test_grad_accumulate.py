"""grad_accumulate_ against the definition in float64."""

import math

import pytest
import torch

from hullft_ops import reference
from problems import DTYPES

OPS = torch.ops.hullft_ops
# One large enough for several threads, and more tensors than one launch takes.
SIZES = [40_003, 0, 17, 1, *range(60)]


def normal(sizes: list[int], dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    return [tensor.clone() for tensor in wide.to(dtype).split(sizes)]


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [
        (1.0, 1.0),
        (0.25, 0.5),
        (-3.0, 0.0),
        (0.0, 2.0),
    ],
)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cache_dtype", DTYPES, ids=str)
def test_dtypes(
    simd_level: str,
    cache_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    alpha: float,
    beta: float,
) -> None:
    """Rounded to the cache's dtype once, after arithmetic in float32, or in float64 if one is."""
    caches = normal(SIZES, cache_dtype, 0)
    grads = normal(SIZES, grad_dtype, 1)
    if beta == 0:
        caches[0].fill_(math.nan)  # overwritten, whatever is there

    expected, scales = [], []

    for cache, grad in zip(caches, grads, strict=True):
        sums = reference.grad_accumulate(cache, grad, alpha=alpha, beta=beta)
        expected.append(sums)
        of_grad = abs(alpha) * grad.abs()
        of_cache = abs(beta) * cache.nan_to_num().abs()
        scales.append(of_grad + of_cache)

    OPS.grad_accumulate_(caches, grads, alpha=alpha, beta=beta)

    is_wide = torch.float64 in (cache_dtype, grad_dtype)
    arithmetic = torch.float64 if is_wide else torch.float32
    arithmetic_eps = torch.finfo(arithmetic).eps
    # From float64 arithmetic to 16 bits by way of float32.
    eps = torch.finfo(cache_dtype).eps * (1 + 1e-3)
    smallest = torch.finfo(cache_dtype).smallest_normal * eps

    for ours, exact, scale in zip(caches, expected, scales, strict=True):
        assert ours.dtype == cache_dtype

        error = (ours.double() - exact).abs()
        rounding = eps / 2 * exact.abs()
        bound = rounding + arithmetic_eps * scale.double() + smallest

        assert error.le(bound).all()


def test_nan_and_infinity_in_a_gradient_reach_the_cache() -> None:
    caches = normal([20], torch.float32, 0)
    grads = normal([20], torch.bfloat16, 1)
    grads[0][3] = math.nan
    grads[0][19] = -math.inf
    OPS.grad_accumulate_(caches, grads)

    assert caches[0].isnan().nonzero().tolist() == [[3]]
    assert (caches[0] == -math.inf).nonzero().tolist() == [[19]]


def test_strides() -> None:
    [cache] = normal([24], torch.float32, 0)
    [grad] = normal([24], torch.bfloat16, 1)
    cache = cache.view(4, 6)
    grad = grad.view(4, 6)
    expected = cache + grad

    wide = torch.full((4, 9), 7.0)
    strided = wide[:, 2:8].copy_(cache)
    columns_first = grad.t().contiguous().t()
    OPS.grad_accumulate_([strided], [columns_first])

    assert torch.equal(strided, expected)
    assert (wide[:, [0, 1, 8]] == 7).all()


def test_opcheck() -> None:
    caches = normal([3, 0, 5], torch.bfloat16, 0)
    grads = normal([3, 0, 5], torch.float32, 1)
    factors = {"alpha": 2.0, "beta": 0.5}
    torch.library.opcheck(OPS.grad_accumulate_.default, (caches, grads), factors)
