"""GradientCache: what it keeps, what it allocates, and stepping with it."""

import math

import pytest
import torch
from accelerate import Accelerator

from hullft_ops import GradientCache, ReplayAdam
from problems import DTYPES


def make_params(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator).requires_grad_() for shape in shapes
    ]


def set_grads(params: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)

    return [param.grad.clone() for param in params]


@pytest.mark.parametrize("dtype", DTYPES)
def test_replay_is_a_step_with_that_gradient(dtype: torch.dtype) -> None:
    params = make_params((40, 3), (5,))
    twins = make_params((40, 3), (5,))
    cache = GradientCache(params, dtype)
    grads = set_grads(params, 1)
    cache.accumulate("a")

    for param, kept in cache.gradients("a").items():
        assert kept.dtype == dtype
        assert torch.equal(kept, param.grad.to(dtype))

    assert cache.nbytes == 125 * dtype.itemsize

    set_grads(params, 2)
    present = [param.grad for param in params]
    cache.replay("a", ReplayAdam(params), repeats=3)

    for twin, grad in zip(twins, grads, strict=True):
        twin.grad = grad.to(dtype).float()

    ReplayAdam(twins).step(repeats=3)

    assert all(map(torch.equal, params, twins))

    for param, grad in zip(params, present, strict=True):
        assert param.grad is grad


def test_replay_takes_accelerates_wrapper() -> None:
    params = make_params((4, 3))
    twins = make_params((4, 3))
    set_grads(params, 1)
    set_grads(twins, 1)
    cache = GradientCache(params)
    cache.accumulate("a")
    cache.replay("a", Accelerator(cpu=True).prepare(ReplayAdam(params)), repeats=3)
    ReplayAdam(twins).step(repeats=3)

    assert torch.equal(params[0], twins[0])


def test_accumulate_adds_weighted_gradients() -> None:
    [param] = make_params((4, 3))
    cache = GradientCache([param])
    [first] = set_grads([param], 1)
    cache.accumulate(7, alpha=0.5)
    [second] = set_grads([param], 2)
    cache.accumulate(7, alpha=0.25, beta=2.0)
    kept = cache.gradients(7)[param]

    torch.testing.assert_close(kept, first + 0.25 * second, rtol=1e-6, atol=1e-7)

    [third] = set_grads([param], 3)
    cache.accumulate(7, beta=0)
    param.grad.zero_()  # a copy is kept

    assert torch.equal(cache.gradients(7)[param], third)


def test_own_dtypes_by_default() -> None:
    params = [torch.zeros(4), torch.zeros(6, dtype=torch.bfloat16)]
    cache = GradientCache(iter(params))
    set_grads(params, 1)
    cache.accumulate(0)

    for param, kept in cache.gradients(0).items():
        assert kept.dtype == param.dtype

    assert cache.nbytes == 4 * 4 + 6 * 2


def test_buffers_have_the_parameters_strides() -> None:
    transposed = torch.zeros(3, 4).t().requires_grad_()
    cache = GradientCache([transposed])
    transposed.grad = torch.arange(12.0).view(4, 3)
    cache.accumulate(0)
    kept = cache.gradients(0)[transposed]

    assert kept.stride() == transposed.stride()
    assert torch.equal(kept, torch.arange(12.0).view(4, 3))


def test_dropped_examples_free_their_buffers() -> None:
    params = make_params((4, 3), (5,))
    cache = GradientCache(params)

    assert cache.nbytes == 0

    set_grads(params, 1)
    for example in range(3):
        cache.accumulate(example)

    assert len(cache) == 3
    assert cache.nbytes == 3 * 17 * 4

    cache.drop(1)

    assert 1 not in cache
    assert 2 in cache
    assert cache.nbytes == 2 * 17 * 4

    cache.clear()

    assert len(cache) == cache.nbytes == 0


def test_parameters_without_a_gradient() -> None:
    params = make_params((4,), (5,))
    cache = GradientCache(params)
    first, second = set_grads(params, 1)
    params[1].grad = None
    cache.accumulate(0)

    assert list(cache.gradients(0)) == [params[0]]

    before = params[1].detach().clone()
    cache.replay(0, ReplayAdam(params, lr=0.1))

    assert torch.equal(params[1], before)

    params[0].grad = None
    params[1].grad = second
    cache.accumulate(0, beta=0.5)
    kept = cache.gradients(0)

    assert torch.equal(kept[params[0]], 0.5 * first)
    assert torch.equal(kept[params[1]], second)

    cache.accumulate(0, beta=0)

    assert list(cache.gradients(0)) == [params[1]]


ONE = torch.zeros(3)


@pytest.mark.parametrize(
    ("error", "message", "params", "dtype"),
    [
        (ValueError, "params is empty", [], None),
        (TypeError, "params must be an iterable of tensors, got one", ONE, None),
        (TypeError, r"params\[1\] must be .* got float", [ONE, 3.0], None),
        (ValueError, r"params\[1\] is params\[0\] again", [ONE, ONE], None),
        (
            TypeError,
            r"params\[0\] must be .*complex64",
            [ONE.to(torch.complex64)],
            None,
        ),
        (ValueError, "dtype must be .*int8", [ONE], torch.int8),
    ],
)
def test_bad_parameters(
    error: type[Exception], message: str, params: object, dtype: torch.dtype | None
) -> None:
    with pytest.raises(error, match=f"^GradientCache: {message}"):
        GradientCache(params, dtype)


def test_replay_needs_a_replay_adam() -> None:
    params = make_params((3,))
    cache = GradientCache(params)
    set_grads(params, 1)
    cache.accumulate("a")
    adam = torch.optim.Adam(params)

    with pytest.raises(TypeError, match="replay needs a ReplayAdam, got Adam$"):
        cache.replay("a", adam)


@pytest.mark.parametrize(
    ("example", "weight", "value"),
    [(0, "alpha", math.nan), (1, "alpha", math.nan), (0, "beta", math.inf)],
)
def test_a_failed_accumulate_changes_nothing(
    example: int, weight: str, value: float
) -> None:
    """Whether the example is cached or not."""
    params = make_params((4,), (5,))
    cache = GradientCache(params)
    grads = set_grads(params, 1)
    cache.accumulate(0)

    with pytest.raises(ValueError, match=f"{weight} must be finite .*got {value}$"):
        cache.accumulate(example, **{weight: value})

    assert len(cache) == 1
    assert all(map(torch.equal, cache.gradients(0).values(), grads))


def test_unknown_examples() -> None:
    params = make_params((4,))
    cache = GradientCache(params)
    message = r"GradientCache: example \('x', 3\) is not cached"

    with pytest.raises(KeyError, match=message):
        cache.replay(("x", 3), ReplayAdam(params))

    with pytest.raises(KeyError, match=message):
        cache.drop(("x", 3))


def test_no_gradient_at_all() -> None:
    with pytest.raises(ValueError, match="accumulate: no parameter has a gradient"):
        GradientCache(make_params((4,))).accumulate(0)


def test_a_parameter_that_the_optimizer_does_not_have() -> None:
    params = make_params((4,), (5,))
    cache = GradientCache(params)
    set_grads(params, 1)
    cache.accumulate(0)
    before = params[0].detach().clone()

    with pytest.raises(ValueError, match="key 1 of grads is not a parameter"):
        cache.replay(0, ReplayAdam(params[:1]))

    assert torch.equal(params[0], before)
