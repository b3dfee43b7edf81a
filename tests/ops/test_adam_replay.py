"""adam_replay_ against torch.optim.Adam and AdamW, and against the definition in float64."""

import math
from fractions import Fraction

import pytest
import torch

from adam_problems import (
    OPS,
    OPTIONS,
    AdamTensors,
    adam_replay,
    assert_same_bits,
    assert_within,
    make_tensors,
    torch_adam,
)
from hullft_ops import reference
from problems import DTYPES

REPEATS = [1, 2, 3, 7, 64]
DECAYS = {
    "Adam": {},
    "Adam coupled": {"weight_decay": 0.1},
    "AdamW": {"weight_decay": 0.1, "decoupled": True},
    "maximize": {"weight_decay": 0.1, "maximize": True},
}
# 1003 elements: whole vectors of every width and a tail.
SIZES = [1003, 0, 17, 1]


def check_against_torch(
    tensors: AdamTensors, repeats: int, **options: float | bool
) -> None:
    """Within 2 eps and half an eps a step, in float64 at most 1e-14.

    torch rounds its square root and one division more than we do, 2 eps of a move, and 0.5 eps of
    the parameter at each step. Both are relative to how far a parameter started from zero and
    travelled, since it may end near zero; moments to the largest they have been.
    """
    ours = adam_replay(tensors, repeats, **options)
    theirs = torch_adam(tensors, repeats, **options)
    eps = torch.finfo(tensors.params[0].dtype).eps
    bound = (2 + repeats / 2) * eps
    if eps < 1e-15:
        assert bound < 1e-14

    assert_step_counts(ours, tensors, repeats)

    for i, path in enumerate(theirs.path):
        assert_within(ours.params[i], theirs.after.params[i], bound * path)

        gradient = tensors.grads[i].abs() + options.get("weight_decay", 0.0) * path
        largest = torch.maximum(tensors.exp_avgs[i].abs(), gradient)

        assert_within(ours.exp_avgs[i], theirs.after.exp_avgs[i], 3 * eps * largest)

        largest = torch.maximum(tensors.exp_avg_sqs[i], gradient**2)
        assert_within(ours.exp_avg_sqs[i], theirs.after.exp_avg_sqs[i], bound * largest)


def assert_step_counts(after: AdamTensors, before: AdamTensors, repeats: int) -> None:
    for count, count_before in zip(after.steps, before.steps, strict=True):
        assert count.dtype == count_before.dtype
        assert count.item() == count_before.item() + repeats


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("steps_done", [0.0, 1000.0])
@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torch(
    simd_level: str, dtype: torch.dtype, repeats: int, steps_done: float, decay: str
) -> None:
    tensors = make_tensors(SIZES, dtype, steps_done=steps_done, seed=repeats)
    check_against_torch(tensors, repeats, **DECAYS[decay])


@pytest.mark.parametrize("n_tensors", [1, 2, 30, 300])
def test_any_number_of_tensors(n_tensors: int) -> None:
    """Sizes from 0, first and last empty, one large enough for several threads."""
    sizes = []
    for i in range(n_tensors):
        sizes.append((7 * i) % 61 if i % 5 else 0)

    sizes[n_tensors // 2] = 40_000
    if n_tensors > 2:
        sizes[-1] = 0

    tensors = make_tensors(sizes, torch.float32, steps_done=1000.0)
    check_against_torch(tensors, 3)


def test_each_tensor_has_its_own_step_count() -> None:
    tensors = make_tensors([100, 100, 100], torch.float64)
    steps = [torch.tensor(count) for count in (0.0, 5.0, 1000.0)]

    tensors = tensors._replace(steps=steps)

    check_against_torch(tensors, 3)


def test_step_counts_may_be_float64() -> None:
    tensors = make_tensors(SIZES)
    wide = tensors._replace(steps=[count.double() for count in tensors.steps])
    after = adam_replay(wide, 3)

    assert_step_counts(after, wide, 3)

    narrow = adam_replay(tensors, 3)

    assert torch.equal(after.params[0], narrow.params[0])


def test_many_repeats() -> None:
    """Past some 360 steps with these betas the corrections are exactly 1 and stay so."""
    tensors = make_tensors([5], torch.float64)
    at_once = adam_replay(tensors, 10_000, beta2=0.9)
    options = {**OPTIONS, "beta2": 0.9}
    [row] = zip(*tensors, strict=True)
    expected = reference.adam_replay(*row, repeats=10_000, **options)

    torch.testing.assert_close(at_once.params[0], expected.param, rtol=1e-11, atol=0)


@pytest.mark.parametrize("t", [1, 7, 15, 26, 1000, 12_345])
def test_bias_corrections_are_rounded_once(t: int) -> None:
    """With a first moment of g and a second of 1, the step is the correction alone."""
    one = torch.ones(1, dtype=torch.float64)
    tensors = AdamTensors([0 * one], [one], [one], [one], [(t - 1) * one])
    after = adam_replay(tensors, 1, lr=1.0, beta1=0.0, eps=0.0)

    power = float(Fraction(OPTIONS["beta2"]) ** t)
    assert after.params[0].item() == -math.sqrt(1 - power)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_rate_for_each_tensor(
    simd_level: str, dtype: torch.dtype, decay: str
) -> None:
    """As if each stood in a call of its own. Two in a row have one schedule."""
    scales = [0.5, 3.0, 0.0, 0.0, 0.5]
    tensors = make_tensors([1003, 0, 17, 4, 5], dtype, steps_done=7.0)
    rates = torch.tensor(scales, dtype=torch.float64)
    options = DECAYS[decay] | {"lr_scales": rates}
    together = adam_replay(tensors, 3, **options)

    for i, scale in enumerate(scales):
        alone = AdamTensors(*[column[i : i + 1] for column in tensors])
        rate = DECAYS[decay] | {"lr": scale * OPTIONS["lr"]}
        expected = adam_replay(alone, 3, **rate)

        assert torch.equal(together.params[i], expected.params[0])
        assert torch.equal(together.exp_avgs[i], expected.exp_avgs[0])

    options |= {
        "lr": 0.0,
        "lr_tensor": torch.tensor(OPTIONS["lr"], dtype=torch.float64),
    }
    assert_same_bits(adam_replay(tensors, 3, **options), together)


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(simd_level: str, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """Rounded to the parameter's dtype once, from arithmetic in float32 or float64."""
    options = {**OPTIONS, "weight_decay": 0.1}
    tensors = make_tensors(SIZES, dtype, grad_dtype=grad_dtype, steps_done=10.0)
    after = adam_replay(tensors, 4, **options)

    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    wide_grads = [grad.to(arithmetic) for grad in tensors.grads]
    same_gradient = tensors._replace(grads=wide_grads)
    after_same_gradient = adam_replay(same_gradient, 4, **options)

    assert_same_bits(after, after_same_gradient)

    rows = zip(*same_gradient, strict=True)
    exact = [reference.adam_replay(*row, repeats=4, **options) for row in rows]
    rounding = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0.0
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps

    def assert_rounded(
        value: torch.Tensor, exact: torch.Tensor, scale: torch.Tensor
    ) -> None:
        assert value.dtype == dtype

        arithmetic_error = 8 * torch.finfo(arithmetic).eps * scale
        bound = rounding * exact.abs() + arithmetic_error + smallest
        assert_within(value, exact, bound)

    for i, start in enumerate(tensors.params):
        path = start.double().abs() + 4 * OPTIONS["lr"]
        assert_rounded(after.params[i], exact[i].param, path)

        gradient = tensors.grads[i].double().abs() + 0.1 * path
        scale = gradient + tensors.exp_avgs[i].abs()

        assert_rounded(after.exp_avgs[i], exact[i].exp_avg, scale)

        scale = gradient**2 + tensors.exp_avg_sqs[i]
        assert_rounded(after.exp_avg_sqs[i], exact[i].exp_avg_sq, scale)


def test_dtypes_may_be_mixed_in_a_call() -> None:
    mixed = AdamTensors([], [], [], [], [])
    alone = []

    for dtype in DTYPES:
        tensors = make_tensors([130], dtype, grad_dtype=torch.float32)
        alone.append(adam_replay(tensors, 3))
        for column, tensor in zip(mixed, tensors, strict=True):
            column.extend(tensor)

    together = adam_replay(mixed, 3)
    for value, expected in zip(together.params, alone, strict=True):
        assert torch.equal(value, expected.params[0])


def test_memory_between_strided_elements_is_not_touched() -> None:
    tensors = make_tensors([(8, 3)])
    wide = torch.full((8, 9), 7.0)
    wide[:, 2:5] = tensors.params[0]
    strided = tensors._replace(params=[wide[:, 2:5]])
    OPS.adam_replay_(*strided, repeats=2, **OPTIONS)

    assert (wide[:, :2] == 7).all()
    assert (wide[:, 5:] == 7).all()


def test_an_expanded_gradient() -> None:
    tensors = make_tensors([(5, 7)])
    dense_grad = torch.full((5, 7), 0.5)
    dense = tensors._replace(grads=[dense_grad])
    expected = adam_replay(dense, 2)

    expanded_grad = torch.tensor(0.5).expand(5, 7)
    expanded = tensors._replace(grads=[expanded_grad])
    OPS.adam_replay_(*expanded, repeats=2, **OPTIONS)

    assert_same_bits(expanded, expected)


def test_strided_parameters_that_require_grad_in_grad_mode() -> None:
    tensors = make_tensors([(6, 4)])
    expected = adam_replay(tensors, 2).params[0]

    view = torch.zeros(6, 9)[:, :4].detach()
    leaf = view.copy_(tensors.params[0]).requires_grad_()
    tensors = tensors._replace(params=[leaf])
    OPS.adam_replay_(*tensors, repeats=2, **OPTIONS)

    assert leaf.is_leaf
    assert torch.equal(leaf.detach(), expected)


def test_what_is_not_finite_stays_where_it_is(simd_level: str) -> None:
    tensors = make_tensors([50])
    tensors.grads[0][[3, 20, 49]] = torch.tensor([math.nan, math.inf, -math.inf])
    ours = adam_replay(tensors, 3)
    theirs = torch_adam(tensors, 3).after

    for column in ("params", "exp_avgs", "exp_avg_sqs"):
        value = getattr(ours, column)[0]
        expected = getattr(theirs, column)[0]

        assert torch.equal(value.isnan(), expected.isnan())
        assert torch.equal(value.isinf(), expected.isinf())
        assert value.isfinite().sum() == 47


def test_gradients_may_share_memory_with_each_other() -> None:
    tensors = make_tensors([5, 5])
    gradient = tensors.grads[0]
    apart = tensors._replace(grads=[gradient, gradient.clone()])
    expected = adam_replay(apart, 2)
    shared = tensors._replace(grads=[gradient, gradient])
    OPS.adam_replay_(*shared, repeats=2, **OPTIONS)

    assert_same_bits(shared, expected)


def test_a_rate_that_only_float64_holds_is_taken_for_float64() -> None:
    tensors = make_tensors([3], torch.float64)
    assert adam_replay(tensors, 1, lr=1e39).params[0].isfinite().all()


SCALES = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"repeats": 2, "lr_scales": SCALES}),
        (torch.float32, {"repeats": 2, "lr_scales": SCALES, "weight_decay": 0.1}),
        (torch.float32, {"repeats": 1, "repeats_tensor": torch.tensor(3)}),
        (torch.bfloat16, {"repeats": 2, "seed": 3, "lr_tensor": torch.tensor(1e-3)}),
    ],
)
def test_opcheck(dtype: torch.dtype, options: dict[str, object]) -> None:
    tensors = make_tensors([(3, 4), 0, 5], dtype, grad_dtype=torch.bfloat16)
    options = {**OPTIONS, **options}
    torch.library.opcheck(OPS.adam_replay_.default, tuple(tensors), options)
