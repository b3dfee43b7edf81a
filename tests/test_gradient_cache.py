"""GradientCache: what it keeps, what it allocates, and stepping with it."""

import math

import pytest
import torch

from hullft_ops.gradient_cache import GradientCache
from hullft_ops.replay import ReplayAdam


def make_params(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in shapes
    ]


def set_grads(params: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    return [param.grad.clone() for param in params]


def test_interleaved_order_equals_adam_with_cloned_gradients() -> None:
    """Three examples in turn, each gradient refreshed every second round."""
    ours, theirs = make_params((4, 3), (5,)), make_params((4, 3), (5,))
    cache, optimizer = GradientCache(ours), ReplayAdam(ours, lr=1e-2)
    peer, clones = torch.optim.Adam(theirs, lr=1e-2), {}
    for turn in range(4):
        for example in range(3):
            if turn % 2 == 0:
                clones[example] = set_grads(ours, 10 * turn + example)
                cache.accumulate(example, beta=0)
            cache.replay(example, optimizer)
            for param, grad in zip(theirs, clones[example], strict=True):
                param.grad = grad.clone()
            peer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_replay_is_a_step_with_that_gradient() -> None:
    params, twins = make_params((4, 3), (5,)), make_params((4, 3), (5,))
    cache = GradientCache(params)
    grads = set_grads(params, 1)
    cache.accumulate("a")
    set_grads(params, 2)
    present = [param.grad for param in params]
    cache.replay("a", ReplayAdam(params), repeats=3)
    for twin, grad in zip(twins, grads, strict=True):
        twin.grad = grad
    ReplayAdam(twins).step(repeats=3)
    for param, twin, grad in zip(params, twins, present, strict=True):
        assert torch.equal(param, twin)
        assert param.grad is grad


def test_accumulate_adds_weighted_gradients() -> None:
    params = make_params((4, 3))
    cache = GradientCache(params)
    first = set_grads(params, 1)[0]
    cache.accumulate(7, alpha=0.5)
    second = set_grads(params, 2)[0]
    cache.accumulate(7, alpha=0.25, beta=2.0)
    kept = cache.gradients(7)[params[0]]
    torch.testing.assert_close(kept, first + 0.25 * second, rtol=1e-6, atol=1e-7)
    third = set_grads(params, 3)[0]
    cache.accumulate(7, beta=0)
    assert torch.equal(cache.gradients(7)[params[0]], third)


def test_a_new_example_starts_from_zero_whatever_its_buffer_held() -> None:
    params = make_params((4, 3))
    cache = GradientCache(params)
    params[0].grad = torch.full((4, 3), math.nan)
    cache.accumulate("poison")
    cache.drop("poison")
    grad = set_grads(params, 1)[0]
    cache.accumulate("clean")
    assert torch.equal(cache.gradients("clean")[params[0]], grad)


def test_later_gradients_do_not_reach_the_cache() -> None:
    params = make_params((4,))
    cache = GradientCache(params)
    grad = set_grads(params, 1)[0]
    cache.accumulate(0)
    params[0].grad.zero_()
    assert torch.equal(cache.gradients(0)[params[0]], grad)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16]
)
def test_dtype(dtype: torch.dtype) -> None:
    params, twins = make_params((40, 3), (5,)), make_params((40, 3), (5,))
    cache = GradientCache(params, dtype)
    grads = set_grads(params, 1)
    cache.accumulate(0)
    for param, kept in cache.gradients(0).items():
        assert kept.dtype == dtype
        assert torch.equal(kept, param.grad.to(dtype))
    assert cache.nbytes == 125 * dtype.itemsize
    cache.replay(0, ReplayAdam(params), repeats=2)
    for twin, grad in zip(twins, grads, strict=True):
        twin.grad = grad.to(dtype).float()
    ReplayAdam(twins).step(repeats=2)
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)


def test_own_dtypes_by_default() -> None:
    params = make_params((4,)) + make_params((6,), dtype=torch.bfloat16)
    cache = GradientCache(iter(params))
    set_grads(params, 1)
    cache.accumulate(0)
    assert [t.dtype for t in cache.gradients(0).values()] == [
        torch.float32,
        torch.bfloat16,
    ]
    assert cache.nbytes == 4 * 4 + 6 * 2


def test_buffers_have_the_parameters_strides() -> None:
    transposed = torch.zeros(3, 4).t().requires_grad_()
    cache = GradientCache([transposed])
    transposed.grad = torch.arange(12.0).view(4, 3)
    cache.accumulate(0)
    kept = cache.gradients(0)[transposed]
    assert kept.stride() == transposed.stride()
    assert torch.equal(kept, torch.arange(12.0).view(4, 3))


def test_buffers_are_reused() -> None:
    params = make_params((4, 3), (5,))
    cache = GradientCache(params)
    assert cache.nbytes == 0
    set_grads(params, 1)
    for example in range(3):
        cache.accumulate(example)
    assert (len(cache), cache.nbytes) == (3, 3 * 17 * 4)
    pointers = {t.data_ptr() for i in range(3) for t in cache.gradients(i).values()}
    assert len(pointers) == 6
    cache.drop(1)
    assert 1 not in cache
    assert 2 in cache
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 3 * 17 * 4)
    for example in "abc":
        cache.accumulate(example)
    again = {
        t.data_ptr() for example in "abc" for t in cache.gradients(example).values()
    }
    assert again == pointers


def test_parameters_without_a_gradient() -> None:
    params = make_params((4,), (5,))
    cache, optimizer = GradientCache(params), ReplayAdam(params, lr=0.1)
    first, second = set_grads(params, 1)
    params[1].grad = None
    cache.accumulate(0)
    assert list(cache.gradients(0)) == [params[0]]
    before = params[1].detach().clone()
    cache.replay(0, optimizer)
    assert torch.equal(params[1], before)

    params[0].grad, params[1].grad = None, second
    cache.accumulate(0, beta=0.5)
    kept = cache.gradients(0)
    assert torch.equal(kept[params[0]], 0.5 * first)
    assert torch.equal(kept[params[1]], second)

    cache.accumulate(0, beta=0)
    assert list(cache.gradients(0)) == [params[1]]
    assert cache.nbytes == 9 * 4


def test_a_failed_accumulate_changes_nothing() -> None:
    params = make_params((4,), (5,))
    cache = GradientCache(params)
    grads = set_grads(params, 1)
    cache.accumulate(0)
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        cache.accumulate(0, alpha=math.nan)
    with pytest.raises(ValueError, match="beta must be finite, got inf"):
        cache.accumulate(0, beta=math.inf)
    for wrong in ({"alpha": math.nan}, {"beta": math.nan}):
        with pytest.raises(
            ValueError, match="^GradientCache.accumulate: .* finite, got nan"
        ):
            cache.accumulate(1, **wrong)
    with pytest.raises(TypeError, match="beta must be a number, got str"):
        cache.accumulate(1, beta="much")
    assert 1 not in cache
    for kept, grad in zip(cache.gradients(0).values(), grads, strict=True):
        assert torch.equal(kept, grad)


def test_unknown_examples() -> None:
    params = make_params((4,))
    cache = GradientCache(params)
    for call in (
        lambda: cache.replay(("x", 3), ReplayAdam(params)),
        lambda: cache.gradients(("x", 3)),
        lambda: cache.drop(("x", 3)),
    ):
        with pytest.raises(KeyError) as caught:
            call()
        assert caught.value.args == ("GradientCache: example ('x', 3) is not cached",)


def test_what_was_cached_in_inference_mode_is_scaled_outside_of_it() -> None:
    params = make_params((4, 3), (5,))
    cache = GradientCache(params)
    grads = set_grads(params, 1)
    with torch.inference_mode():
        cache.accumulate(0)
    params[1].grad = None
    cache.accumulate(0, beta=0.5)
    torch.testing.assert_close(cache.gradients(0)[params[0]], 1.5 * grads[0])
    torch.testing.assert_close(cache.gradients(0)[params[1]], 0.5 * grads[1])


def test_bad_parameters() -> None:
    one = torch.zeros(3)
    for params, dtype, error, message in (
        ([], None, ValueError, "params is empty"),
        (one, None, TypeError, "params must be an iterable of tensors, got one tensor"),
        ([one, 3.0], None, TypeError, r"params\[1\] must be a torch.Tensor, got float"),
        ([one, one], None, ValueError, "params has a parameter twice"),
        (
            [torch.zeros(3, dtype=torch.complex64)],
            None,
            ValueError,
            r"params\[0\] must be float32, float64, bfloat16 or float16, got torch.complex64",
        ),
        (
            [one],
            torch.int8,
            ValueError,
            "dtype must be float32, float64, bfloat16 or float16, got torch.int8",
        ),
    ):
        with pytest.raises(error, match=f"^GradientCache: {message}$"):
            GradientCache(params, dtype)


def test_no_gradient_at_all() -> None:
    with pytest.raises(
        ValueError, match=r"accumulate: no parameter has a gradient, call backward"
    ):
        GradientCache(make_params((4,))).accumulate(0)


def test_a_sparse_gradient() -> None:
    params = make_params((4, 3))
    params[0].grad = torch.zeros(4, 3).to_sparse()
    message = "the gradient of parameter 0 must be dense, got layout torch.sparse_coo"
    with pytest.raises(TypeError, match=message):
        GradientCache(params).accumulate(0)


def test_a_parameter_that_changed_its_shape() -> None:
    params = make_params((4,))
    cache = GradientCache(params)
    params[0].data = torch.zeros(6)
    params[0].grad = torch.zeros(6)
    with pytest.raises(
        ValueError, match=r"params\[0\] had shape \[4\] .* now has \[6\]"
    ):
        cache.accumulate(0)


def test_a_parameter_that_the_optimizer_does_not_have() -> None:
    params = make_params((4,), (5,))
    cache = GradientCache(params)
    set_grads(params, 1)
    cache.accumulate(0)
    before = params[0].detach().clone()
    with pytest.raises(
        ValueError, match=r"key 1 of grads, of shape \[5\], is not a parameter"
    ):
        cache.replay(0, ReplayAdam(params[:1]))
    assert torch.equal(params[0], before)


def test_a_graph_that_saved_a_buffer_notices_a_later_accumulation() -> None:
    param = torch.ones(3, requires_grad=True)
    cache = GradientCache([param])
    param.grad = torch.ones(3)
    cache.accumulate("a")
    factor = torch.ones(3, requires_grad=True)
    loss = (factor * cache.gradients("a")[param]).sum()
    cache.accumulate("a")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
