"""adam_replay_ against torch.optim.Adam and AdamW, and against the definition in float64."""

import math
from collections.abc import Callable

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

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
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
    ours, theirs = (
        adam_replay(tensors, repeats, **options),
        torch_adam(tensors, repeats, **options),
    )
    eps = torch.finfo(tensors.params[0].dtype).eps
    bound = (2 + repeats / 2) * eps
    if eps < 1e-15:
        assert bound < 1e-14
    assert_step_counts(ours, tensors, repeats)
    for i, path in enumerate(theirs.path):
        assert_within(ours.params[i], theirs.after.params[i], bound * path)
        gradient = tensors.grads[i].abs() + options.get("weight_decay", 0.0) * path
        assert_within(
            ours.exp_avgs[i],
            theirs.after.exp_avgs[i],
            3 * eps * torch.maximum(tensors.exp_avgs[i].abs(), gradient),
        )
        assert_within(
            ours.exp_avg_sqs[i],
            theirs.after.exp_avg_sqs[i],
            bound * torch.maximum(tensors.exp_avg_sqs[i], gradient**2),
        )


def assert_step_counts(after: AdamTensors, before: AdamTensors, repeats: int) -> None:
    for a, b in zip(after.steps, before.steps, strict=True):
        assert a.dtype == b.dtype
        assert a.item() == b.item() + repeats


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("steps_done", [0.0, 1000.0])
@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torch(
    simd_level: str, dtype: torch.dtype, repeats: int, steps_done: float, decay: str
) -> None:
    tensors = make_tensors(SIZES, dtype, steps_done=steps_done, seed=repeats)
    check_against_torch(tensors, repeats, **DECAYS[decay])


@pytest.mark.parametrize(
    "options",
    [
        {"beta1": 0.0},
        {"beta1": 0.3, "beta2": 0.5},
        {"beta2": 0.0},
        {"eps": 1e-2},
        {"lr": 0.0},
        {"lr": 0.0, "weight_decay": 0.1, "decoupled": True},
        {"beta1": 0.999, "beta2": 0.99999},
    ],
    ids=str,
)
def test_equals_torch_with_other_options(options: dict[str, float | bool]) -> None:
    for dtype in (torch.float32, torch.float64):
        check_against_torch(make_tensors(SIZES, dtype, steps_done=1000.0), 3, **options)


@pytest.mark.parametrize("n_tensors", [1, 2, 30, 300])
def test_any_number_of_tensors(n_tensors: int) -> None:
    """Sizes from 0, first and last empty, one large enough for several threads."""
    sizes = [(7 * i) % 61 if i % 5 else 0 for i in range(n_tensors)]
    sizes[n_tensors // 2] = 40_000
    if n_tensors > 2:
        sizes[-1] = 0
    check_against_torch(make_tensors(sizes, torch.float32, steps_done=1000.0), 3)


def test_empty_tensors_count_their_steps() -> None:
    empty = adam_replay(make_tensors([0, (3, 0)]), 2)
    assert [t.item() for t in empty.steps] == [2.0, 2.0]


def test_each_tensor_has_its_own_step_count() -> None:
    tensors = make_tensors([100, 100, 100], torch.float64)
    for count, step in zip((0.0, 5.0, 1000.0), tensors.steps, strict=True):
        step.fill_(count)
    check_against_torch(tensors, 3)


def test_step_counts_may_be_float64() -> None:
    tensors = make_tensors(SIZES)
    wide = tensors._replace(steps=[t.double() for t in tensors.steps])
    after = adam_replay(wide, 3)
    assert_step_counts(after, wide, 3)
    assert torch.equal(after.params[0], adam_replay(tensors, 3).params[0])


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_repeats_are_the_steps_one_by_one(
    simd_level: str, dtype: torch.dtype, decay: str
) -> None:
    """Registers hold what memory would: the same bits."""
    tensors = make_tensors(SIZES, dtype, steps_done=3.0)
    one_by_one = tensors.clone()
    for _ in range(7):
        one_by_one = adam_replay(one_by_one, 1, **DECAYS[decay])
    assert_same_bits(adam_replay(tensors, 7, **DECAYS[decay]), one_by_one)


def test_many_repeats() -> None:
    """Past some 360 steps with these betas the corrections are exactly 1 and stay so."""
    tensors = make_tensors([5], torch.float64)
    options = {"beta2": 0.9}
    at_once = adam_replay(tensors, 10_000, **options)
    assert_same_bits(
        at_once, adam_replay(adam_replay(tensors, 100, **options), 9_900, **options)
    )
    wanted = reference.adam_replay(*tensors, repeats=10_000, **{**OPTIONS, **options})
    torch.testing.assert_close(at_once.params, wanted.params, rtol=1e-11, atol=0)


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(simd_level: str, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """Rounded to the parameter's dtype once, from arithmetic in float32 or float64."""
    tensors = make_tensors(SIZES, dtype, grad_dtype=grad_dtype, steps_done=10.0)
    after = adam_replay(tensors, 4, weight_decay=0.1)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    same_gradient = tensors._replace(grads=[g.to(arithmetic) for g in tensors.grads])
    assert_same_bits(after, adam_replay(same_gradient, 4, weight_decay=0.1))
    wanted = reference.adam_replay(
        *same_gradient, repeats=4, **{**OPTIONS, "weight_decay": 0.1}
    )
    rounding = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0.0
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for i, start in enumerate(tensors.params):
        path = start.double().abs() + 4 * OPTIONS["lr"]
        gradient = tensors.grads[i].double().abs() + 0.1 * path
        for ours, exact, scale in (
            (after.params[i], wanted.params[i], path),
            (
                after.exp_avgs[i],
                wanted.exp_avgs[i],
                gradient + tensors.exp_avgs[i].abs(),
            ),
            (
                after.exp_avg_sqs[i],
                wanted.exp_avg_sqs[i],
                gradient**2 + tensors.exp_avg_sqs[i],
            ),
        ):
            assert ours.dtype == dtype
            arithmetic_error = 8 * torch.finfo(arithmetic).eps * scale
            assert_within(
                ours, exact, rounding * exact.abs() + arithmetic_error + smallest
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once_a_call(dtype: torch.dtype) -> None:
    tensors = make_tensors([5000], dtype, steps_done=10.0)
    wanted = reference.adam_replay(*tensors, repeats=16, **OPTIONS).params[0]
    one_by_one = tensors
    for _ in range(16):
        one_by_one = adam_replay(one_by_one, 1)

    def error(after: AdamTensors) -> float:
        return (after.params[0].double() - wanted).abs().mean().item()

    assert error(adam_replay(tensors, 16)) < error(one_by_one) / 2


def test_dtypes_may_be_mixed_in_a_call() -> None:
    each = [make_tensors([130], dtype, grad_dtype=torch.float32) for dtype in DTYPES]
    columns = ([t for [t] in column] for column in zip(*each, strict=True))
    together = adam_replay(AdamTensors(*columns), 3)
    for i, tensors in enumerate(each):
        assert torch.equal(together.params[i], adam_replay(tensors, 3).params[0])


def test_bits_do_not_depend_on_threads(threads: Callable[[int], None]) -> None:
    tensors = make_tensors([70_001, 3, 0, 33_333], steps_done=7.0)
    threads(1)
    alone = adam_replay(tensors, 3)
    for count in (2, 3):
        threads(count)
        assert_same_bits(adam_replay(tensors, 3), alone)


def test_bits_do_not_depend_on_the_place_in_a_tensor(simd_level: str) -> None:
    whole = make_tensors([75], steps_done=7.0)
    split = AdamTensors(
        *(list(column[0].split(1)) for column in whole[:4]), [whole.steps[0]] * 75
    )
    after = adam_replay(split, 3)
    assert torch.equal(torch.cat(after.params), adam_replay(whole, 3).params[0])


def layouts() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Ways to store a [4, 6, 5, 3] tensor."""

    def with_gaps(t: torch.Tensor) -> torch.Tensor:
        wide = torch.full((4, 6, 5, 9), math.nan, dtype=t.dtype)
        wide[..., 2:5] = t
        return wide[..., 2:5]

    return {
        "contiguous": lambda t: t.contiguous(),
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "transposed": lambda t: t.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
        "gaps": with_gaps,
    }


@pytest.mark.parametrize("moments_layout", layouts())
@pytest.mark.parametrize("grad_layout", layouts())
@pytest.mark.parametrize("param_layout", layouts())
def test_strides(param_layout: str, grad_layout: str, moments_layout: str) -> None:
    plain = make_tensors([(4, 6, 5, 3), (3,)], steps_done=2.0)
    strided = plain.clone()
    for column, layout in (
        (strided.params, param_layout),
        (strided.grads, grad_layout),
        (strided.exp_avgs, moments_layout),
        (strided.exp_avg_sqs, moments_layout),
    ):
        column[0] = layouts()[layout](column[0])
    strides = [column[0].stride() for column in strided]
    OPS.adam_replay_(*strided, repeats=3, **OPTIONS)
    assert [column[0].stride() for column in strided] == strides
    assert_same_bits(strided, adam_replay(plain, 3))


def test_memory_between_strided_elements_is_not_touched() -> None:
    tensors = make_tensors([(8, 3)])
    wide = torch.full((8, 9), 7.0)
    wide[:, 2:5] = tensors.params[0]
    strided = tensors._replace(params=[wide[:, 2:5]])
    OPS.adam_replay_(*strided, repeats=2, **OPTIONS)
    assert torch.equal(wide[:, :2], torch.full((8, 2), 7.0))
    assert torch.equal(wide[:, 5:], torch.full((8, 4), 7.0))


def test_an_expanded_gradient() -> None:
    tensors = make_tensors([(5, 7)])
    tensors.grads[0] = torch.tensor(0.5).expand(5, 7)
    dense = tensors._replace(grads=[torch.full((5, 7), 0.5)])
    OPS.adam_replay_(*tensors, repeats=2, **OPTIONS)
    OPS.adam_replay_(*dense, repeats=2, **OPTIONS)
    assert torch.equal(tensors.params[0], dense.params[0])


def test_strided_parameters_that_require_grad_in_grad_mode() -> None:
    tensors = make_tensors([(6, 4)])
    wanted = adam_replay(tensors, 2).params[0]
    leaf = torch.zeros(6, 9)[:, :4].detach().copy_(tensors.params[0]).requires_grad_()
    OPS.adam_replay_(*tensors._replace(params=[leaf]), repeats=2, **OPTIONS)
    assert leaf.is_leaf
    assert torch.equal(leaf.detach(), wanted)


def test_what_is_not_finite_stays_where_it_is(simd_level: str) -> None:
    tensors = make_tensors([50])
    for i, value in ((3, math.nan), (20, math.inf), (49, -math.inf)):
        tensors.grads[0][i] = value
    ours, theirs = adam_replay(tensors, 3), torch_adam(tensors, 3).after
    for column in ("params", "exp_avgs", "exp_avg_sqs"):
        a, b = getattr(ours, column)[0], getattr(theirs, column)[0]
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isinf(), b.isinf())
        assert a.isfinite().sum() == 47


def test_zero_gradients_from_zero_moments_leave_the_parameter() -> None:
    tensors = make_tensors([20])
    tensors.grads[0].zero_()
    assert torch.equal(adam_replay(tensors, 5).params[0], tensors.params[0])


def test_opcheck() -> None:
    for weight_decay in (0.0, 0.1):
        tensors = make_tensors([(3, 4), 0, 5], grad_dtype=torch.bfloat16)
        options = {**OPTIONS, "repeats": 2, "weight_decay": weight_decay}
        torch.library.opcheck(OPS.adam_replay_.default, tuple(tensors), options)
    torch.library.opcheck(
        OPS.adam_replay_check.default, (*tensors, [torch.tensor(1e-3)])
    )


@pytest.mark.refusal("operator")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, r"repeats must be in 1\.\.2147483647, got 0"),
        ({"repeats": -3}, r"repeats must be in 1\.\.2147483647, got -3"),
        ({"repeats": 2**31}, r"repeats must be in 1\.\.2147483647, got 2147483648"),
        ({"lr": -1.0}, "lr must be finite and >= 0, got -1"),
        ({"lr": math.nan}, "lr must be finite and >= 0, got nan"),
        ({"lr": math.inf}, "lr must be finite and >= 0, got inf"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\), got -0.1"),
        ({"beta2": math.nan}, r"beta2 must be in \[0, 1\), got nan"),
        ({"eps": -1e-8}, "eps must be finite and >= 0, got -1e-08"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and >= 0, got -0.1"),
        ({"weight_decay": 1e39}, r"weight_decay must be finite in float32, got 1e\+39"),
        ({"lr": 1e39}, r"lr must be finite in float32, got 1e\+39"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^adam_replay_: {message}$"):
        OPS.adam_replay_(*make_tensors([3]), **{"repeats": 1, **OPTIONS, **options})


def bad_tensors() -> dict[str, tuple[AdamTensors, str]]:
    good = make_tensors([(2, 3), 4])
    cut = torch.zeros(4)
    cut.untyped_storage().resize_(0)
    shrunk = torch.zeros(4)
    shrunk.untyped_storage().resize_(12)
    shared, wide = torch.zeros(6), torch.zeros(2, 20)

    positive = good.grads[1].abs()

    def change(column: str, i: int, tensor: torch.Tensor) -> AdamTensors:
        tensors = good.clone()
        getattr(tensors, column)[i] = tensor
        return tensors

    return {
        "fewer gradients": (
            good._replace(grads=good.grads[:1]),
            "grads has 1 tensors, params has 2",
        ),
        "fewer steps": (good._replace(steps=[]), "steps has 0 tensors, params has 2"),
        "gradient's shape": (
            change("grads", 0, torch.zeros(3, 2)),
            r"grads\[0\] has shape \[3, 2\], params\[0\] has shape \[2, 3\]",
        ),
        "gradient's dimensions": (
            change("grads", 1, torch.zeros(2, 2)),
            r"grads\[1\] has shape \[2, 2\], params\[1\] has shape \[4\]",
        ),
        "moment's shape": (
            change("exp_avg_sqs", 1, torch.zeros(())),
            r"exp_avg_sqs\[1\] has shape \[\], params\[1\] has shape \[4\]",
        ),
        "integer parameter": (
            change("params", 1, torch.zeros(4, dtype=torch.int64)),
            r"params\[1\] must be float32, float64, bfloat16 or float16, got int64",
        ),
        "integer gradient": (
            change("grads", 1, torch.zeros(4, dtype=torch.int64)),
            r"grads\[1\] must be float32, float64, bfloat16 or float16, got int64",
        ),
        "moment's dtype": (
            change("exp_avgs", 0, torch.zeros(2, 3, dtype=torch.float64)),
            r"exp_avgs\[0\] is float64, params\[0\] is float32",
        ),
        "two step counts": (
            change("steps", 1, torch.zeros(2)),
            r"steps\[1\] must hold one float32 or float64 value, got float32 of shape \[2\]",
        ),
        "integer step count": (
            change("steps", 1, torch.tensor(3)),
            r"steps\[1\] must hold one float32 or float64 value, got int64 of shape \[\]",
        ),
        "negative step count": (
            change("steps", 0, torch.tensor(-1.0)),
            r"steps\[0\] must be finite and >= 0, got -1",
        ),
        "NaN step count": (
            change("steps", 0, torch.tensor(math.nan)),
            r"steps\[0\] must be finite and >= 0, got nan",
        ),
        "no storage": (
            change("params", 1, cut),
            r"params\[1\] needs 16 bytes of storage, it has 0",
        ),
        "shrunk storage": (
            change("exp_avgs", 1, shrunk),
            r"exp_avgs\[1\] needs 16 bytes of storage, it has 12",
        ),
        "overlapping parameters": (
            good._replace(params=[shared.view(2, 3), shared[2:]]),
            r"params\[1\] overlaps params\[0\] in memory",
        ),
        "parameter inside another": (
            good._replace(params=[wide[:, :3], wide[0, 10:14]]),
            r"params\[1\] overlaps params\[0\] in memory",
        ),
        "moments are one tensor": (
            good._replace(exp_avg_sqs=good.exp_avgs),
            r"exp_avg(_sq)?s\[[01]\] overlaps exp_avg(_sq)?s\[[01]\] in memory",
        ),
        "gradient is the parameter": (
            good._replace(grads=good.params),
            r"(grads|params)\[[01]\] overlaps (grads|params)\[[01]\] in memory",
        ),
        "step count within a moment": (
            good._replace(steps=[good.steps[0], good.exp_avg_sqs[0][1, 2]]),
            r"(steps|exp_avg_sqs)\[[01]\] overlaps (steps|exp_avg_sqs)\[[01]\] in memory",
        ),
        "step count within a gradient": (
            good._replace(
                grads=[good.grads[0], positive], steps=[positive[3], good.steps[1]]
            ),
            r"(steps|grads)\[[01]\] overlaps (steps|grads)\[[01]\] in memory",
        ),
        "step count without storage": (
            change("steps", 1, torch.tensor(0.0, device="meta")),
            r"steps\[1\] is on meta, the first tensor is on cpu",
        ),
        "gradient without storage": (
            change("grads", 0, torch.zeros(2, 3, device="meta")),
            r"grads\[0\] is on meta, the first tensor is on cpu",
        ),
        "expanded parameter": (
            change("params", 1, torch.zeros(1).expand(4)),
            r"params\[1\] overlaps itself in memory",
        ),
    }


@pytest.mark.refusal("operator")
@pytest.mark.parametrize("case", bad_tensors())
def test_bad_tensors(case: str) -> None:
    tensors, message = bad_tensors()[case]
    with pytest.raises(ValueError, match=f"^adam_replay_: {message}$"):
        OPS.adam_replay_(*tensors, repeats=1, **OPTIONS)


@pytest.mark.refusal("operator")
@pytest.mark.parametrize("case", bad_tensors())
def test_bad_tensors_are_found_by_the_check(case: str) -> None:
    tensors, message = bad_tensors()[case]
    with pytest.raises(ValueError, match=f"^adam_replay_check: {message}$"):
        OPS.adam_replay_check(*tensors, [])


@pytest.mark.refusal("operator")
def test_a_learning_rate_within_what_is_written_is_refused() -> None:
    tensors = make_tensors([(2, 3), 4])
    rate, message = tensors.exp_avgs[1][2], r"(exp_avgs|lr_tensors?)\[[01]\] overlaps"
    with pytest.raises(ValueError, match=f"^adam_replay_: {message}"):
        OPS.adam_replay_(*tensors, repeats=1, lr_tensor=rate, **OPTIONS)
    with pytest.raises(ValueError, match=f"^adam_replay_check: {message}"):
        OPS.adam_replay_check(*tensors, [rate])


def test_a_rate_that_float64_holds_is_taken_for_float64() -> None:
    tensors = make_tensors([3], torch.float64)
    assert adam_replay(tensors, 1, lr=1e39).params[0].isfinite().all()


@pytest.mark.refusal("operator")
@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (
            torch.ones(2),
            "must hold one float32 or float64 value, got float32 of shape .2.",
        ),
        (
            torch.tensor(1),
            "must hold one float32 or float64 value, got int64 of shape ..",
        ),
    ],
)
def test_bad_lr_tensors_are_found_by_the_check(
    rate: torch.Tensor, message: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"^adam_replay_check: lr_tensors\[1\] {message}$"
    ):
        OPS.adam_replay_check(*make_tensors([3]), [torch.tensor(1e-3), rate])


def test_the_check_takes_good_tensors_and_writes_nothing() -> None:
    tensors = make_tensors([(3, 4), 0, 5], grad_dtype=torch.bfloat16)
    before = tensors.clone()
    assert (
        OPS.adam_replay_check(*tensors, [torch.tensor(1e-3), torch.tensor(0.0)]) is None
    )
    assert_same_bits(tensors, before)


@pytest.mark.refusal("operator")
def test_an_error_leaves_everything_as_it_was() -> None:
    tensors = make_tensors([5, 6])
    tensors.grads[1] = torch.zeros(7)
    before = tensors.clone()
    with pytest.raises(ValueError, match=r"grads\[1\]"):
        OPS.adam_replay_(*tensors, repeats=1, **OPTIONS)
    assert_same_bits(tensors, before)


def test_gradients_may_share_memory_with_each_other() -> None:
    tensors = make_tensors([5, 5])
    apart = tensors._replace(grads=[tensors.grads[0], tensors.grads[0].clone()])
    wanted = adam_replay(apart, 2)
    shared = tensors._replace(grads=[tensors.grads[0]] * 2)
    OPS.adam_replay_(*shared, repeats=2, **OPTIONS)
    assert_same_bits(shared, wanted)
