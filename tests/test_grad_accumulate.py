"""grad_accumulate_ against the definition in float64."""

import math
from collections.abc import Callable

import pytest
import torch

from hullft_ops import reference

OPS = torch.ops.hullft_ops
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [1003, 0, 17, 1]


def normal(sizes: list[int], dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)
        for n in sizes
    ]


@pytest.mark.parametrize(
    ("alpha", "beta"), [(1.0, 1.0), (0.25, 0.5), (-3.0, 0.0), (0.0, 2.0)]
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
    caches, grads = normal(SIZES, cache_dtype, 0), normal(SIZES, grad_dtype, 1)
    wanted = reference.grad_accumulate(caches, grads, alpha=alpha, beta=beta)
    scales = [
        abs(alpha) * g.abs() + abs(beta) * c.abs()
        for g, c in zip(grads, caches, strict=True)
    ]
    OPS.grad_accumulate_(caches, grads, alpha=alpha, beta=beta)
    wide = torch.float64 in (cache_dtype, grad_dtype)
    arithmetic_eps = torch.finfo(torch.float64 if wide else torch.float32).eps
    # From float64 arithmetic to 16 bits by way of float32.
    eps = torch.finfo(cache_dtype).eps * (1 + 1e-3)
    smallest = torch.finfo(cache_dtype).smallest_normal * eps
    for ours, exact, scale in zip(caches, wanted, scales, strict=True):
        assert ours.dtype == cache_dtype
        error = (ours.double() - exact).abs()
        bound = eps / 2 * exact.abs() + arithmetic_eps * scale.double() + smallest
        assert error.le(bound).all()


@pytest.mark.parametrize("cache_dtype", DTYPES, ids=str)
def test_beta_zero_overwrites_whatever_is_there(
    simd_level: str, cache_dtype: torch.dtype
) -> None:
    caches = [torch.full((n,), math.nan, dtype=cache_dtype) for n in SIZES]
    grads = normal(SIZES, torch.float32, 1)
    OPS.grad_accumulate_(caches, grads, beta=0.0)
    for cache, grad in zip(caches, grads, strict=True):
        assert torch.equal(cache, grad.to(cache_dtype))


def test_by_default_it_adds() -> None:
    caches, grads = normal(SIZES, torch.float32, 0), normal(SIZES, torch.float32, 1)
    wanted = [c + g for c, g in zip(caches, grads, strict=True)]
    OPS.grad_accumulate_(caches, grads)
    for cache, exact in zip(caches, wanted, strict=True):
        assert torch.equal(cache, exact)


def test_nan_and_infinity_in_a_gradient_reach_the_cache() -> None:
    caches, grads = normal([20], torch.float32, 0), normal([20], torch.bfloat16, 1)
    grads[0][3], grads[0][19] = math.nan, -math.inf
    OPS.grad_accumulate_(caches, grads)
    assert caches[0].isnan().nonzero().tolist() == [[3]]
    assert (caches[0] == -math.inf).nonzero().tolist() == [[19]]


def test_many_tensors() -> None:
    sizes = [(7 * i) % 61 if i % 5 else 0 for i in range(300)]
    sizes[150] = 40_000
    caches, grads = normal(sizes, torch.bfloat16, 0), normal(sizes, torch.float32, 1)
    wanted = [(c.float() + g).bfloat16() for c, g in zip(caches, grads, strict=True)]
    OPS.grad_accumulate_(caches, grads)
    for cache, exact in zip(caches, wanted, strict=True):
        assert torch.equal(cache, exact)


def test_bits_do_not_depend_on_threads(threads: Callable[[int], None]) -> None:
    results = []
    for count in (1, 2, 3):
        threads(count)
        caches = normal([70_001, 3, 33_333], torch.float32, 0)
        OPS.grad_accumulate_(
            caches, normal([70_001, 3, 33_333], torch.bfloat16, 1), alpha=0.3
        )
        results.append(torch.cat(caches))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_strides() -> None:
    cache, grad = normal([24], torch.float32, 0)[0], normal([24], torch.bfloat16, 1)[0]
    wanted = (cache + grad).view(4, 6)
    wide = torch.full((4, 9), 7.0)
    wide[:, 2:8] = cache.view(4, 6)
    OPS.grad_accumulate_([wide[:, 2:8]], [grad.view(4, 6).t().contiguous().t()])
    assert torch.equal(wide[:, 2:8], wanted)
    assert torch.equal(wide[:, [0, 1, 8]], torch.full((4, 3), 7.0))


def test_opcheck() -> None:
    args = (normal([3, 0, 5], torch.bfloat16, 0), normal([3, 0, 5], torch.float32, 1))
    torch.library.opcheck(
        OPS.grad_accumulate_.default, args, {"alpha": 2.0, "beta": 0.5}
    )


def bad_arguments() -> dict[
    str, tuple[list[torch.Tensor], list[torch.Tensor], dict, str]
]:
    one, shared = torch.zeros(4), torch.zeros(6)
    return {
        "lengths": ([one], [], {}, "grads has 0 tensors, caches has 1"),
        "shapes": (
            [one],
            [torch.zeros(2, 2)],
            {},
            r"grads\[0\] has shape \[2, 2\], caches\[0\] has shape \[4\]",
        ),
        "integer cache": (
            [torch.zeros(4, dtype=torch.int64)],
            [one],
            {},
            r"caches\[0\] must be float32, float64, bfloat16 or float16, got int64",
        ),
        "complex gradient": (
            [one],
            [torch.zeros(4, dtype=torch.complex64)],
            {},
            r"grads\[0\] must be float32, float64, bfloat16 or float16, got complex64",
        ),
        "overlap": (
            [shared[:4], shared[2:]],
            [torch.zeros(4), torch.zeros(4)],
            {},
            r"caches\[1\] overlaps caches\[0\] in memory",
        ),
        "itself": (
            [one],
            [one],
            {},
            r"(caches|grads)\[0\] overlaps (caches|grads)\[0\] in memory",
        ),
        "alpha": (
            [one],
            [torch.zeros(4)],
            {"alpha": math.nan},
            "alpha must be finite, got nan",
        ),
        "beta": (
            [one],
            [torch.zeros(4)],
            {"beta": math.inf},
            "beta must be finite, got inf",
        ),
        "alpha in float32": (
            [one.double(), one],
            [torch.zeros(4), torch.zeros(4)],
            {"alpha": 1e39},
            r"alpha must be finite in float32, got 1e\+39",
        ),
    }


@pytest.mark.refusal("operator")
@pytest.mark.parametrize("case", bad_arguments())
def test_bad_arguments(case: str) -> None:
    caches, grads, options, message = bad_arguments()[case]
    with pytest.raises(ValueError, match=f"^grad_accumulate_: {message}$"):
        OPS.grad_accumulate_(caches, grads, **options)
