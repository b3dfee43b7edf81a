"""Stochastic rounding of bfloat16 parameters, and a learning rate that is a tensor."""

import copy
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
    make_tensors,
)
from hullft_ops import ReplayAdam, reference

SEED = 12345678901234567


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: list[int], key: list[int], words: str
) -> None:
    """The known answers of Random123, which its authors publish for every implementation."""
    assert [f"{word:08x}" for word in reference.philox(counter, key)] == words.split()


def before_rounding(
    tensors: AdamTensors, repeats: int, **options: float | bool
) -> AdamTensors:
    """The same arithmetic on the same values, kept in float32."""
    wide = AdamTensors(
        *([t.float() for t in column] for column in tensors[:4]), tensors.steps
    )
    return adam_replay(wide, repeats, **options)


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1}], ids=["Adam", "Adam coupled"]
)
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_reference(
    simd_level: str, grad_dtype: torch.dtype, options: dict[str, float]
) -> None:
    """Bit for bit, tails and empty tensors included; moments are rounded to nearest."""
    sizes = [1003, 0, 17, 1, 8]
    tensors = make_tensors(
        sizes, torch.bfloat16, grad_dtype=grad_dtype, steps_done=70.0
    )
    exact = before_rounding(tensors, 3, **options)
    after = adam_replay(tensors, 3, seed=SEED, **options)
    for i, value in enumerate(exact.params):
        wanted = reference.round_to_bfloat16(value, seed=SEED, tensor=i, steps_done=70)
        assert torch.equal(after.params[i], wanted)
    nearest = adam_replay(tensors, 3, **options)
    assert_same_bits(after._replace(params=[]), nearest._replace(params=[]))
    assert any(
        not torch.equal(a, b) for a, b in zip(after.params, nearest.params, strict=True)
    )


def test_right_on_average() -> None:
    """A step of a quarter of the last place goes up in a quarter of the cases.

    Nearest would never move. Five standard deviations of the mean of independent bits.
    """
    n = 200_000
    unit = 2.0**-7  # of the last place at 1
    for share in (0.25, 0.5, 0.9):
        ones = make_tensors([n], torch.bfloat16, grad_dtype=torch.float32)
        ones.params[0].fill_(1.0)
        ones.grads[0].fill_(-1.0)
        moved = {"lr": share * unit, "beta1": 0.0, "beta2": 0.0, "eps": 0.0}
        up = adam_replay(ones, 1, seed=SEED, **moved).params[0] > 1
        assert abs(up.double().mean().item() - share) <= 5 * math.sqrt(
            share * (1 - share) / n
        )
        halves = up.double() - share
        together = (halves[1:] * halves[:-1]).mean().item()
        assert abs(together) <= 5 * share * (1 - share) / math.sqrt(n)


def test_small_steps_add_up() -> None:
    """256 steps of a 64th of the last place are 4 of it; to nearest they are none."""
    tensors = make_tensors([4096], torch.bfloat16, grad_dtype=torch.float32)
    tensors.params[0].fill_(1.0)
    tensors.grads[0].fill_(-1.0)
    options = {"lr": 2.0**-13, "beta1": 0.0, "beta2": 0.0, "eps": 0.0}
    stochastic = nearest = tensors
    for _ in range(256):
        stochastic = adam_replay(stochastic, 1, seed=SEED, **options)
        nearest = adam_replay(nearest, 1, **options)
    assert torch.equal(nearest.params[0], tensors.params[0])
    travelled = (stochastic.params[0].double() - 1).mean().item()
    # 256 independent bits of probability 1/64 and size 2^-7 for each of 4096 values.
    deviation = 2.0**-7 * math.sqrt(256 * (1 / 64) * (63 / 64) / 4096)
    assert abs(travelled - 256 * 2.0**-13) <= 5 * deviation


def test_random_bits_differ_between_seeds_steps_and_tensors() -> None:
    one = make_tensors([4000], torch.bfloat16, steps_done=3.0)
    twins = AdamTensors(*([column[0], column[0].clone()] for column in one))
    first, second = adam_replay(twins, 1, seed=7).params
    other_seed = adam_replay(one, 1, seed=8).params[0]
    later = one._replace(steps=[torch.tensor(4.0)])
    # A step count of 4 instead of 3 moves the values a little: compare which way they went.
    up = [
        adam_replay(tensors, 1, seed=7).params[0]
        > before_rounding(tensors, 1).params[0]
        for tensors in (one, later)
    ]
    assert torch.equal(first, adam_replay(one, 1, seed=7).params[0])
    for a, b in ((first, second), (first, other_seed), (up[0], up[1])):
        assert 0.1 < (a != b).double().mean().item() < 0.9


@pytest.mark.parametrize("steps_done", [2.0**32 + 5, 2.0**40 + 2.0**33 + 5])
def test_the_low_bits_of_a_step_count_choose_the_noise(steps_done: float) -> None:
    late = make_tensors([4000], torch.bfloat16)
    late.steps[0] = torch.tensor(steps_done, dtype=torch.float64)
    exact = before_rounding(late, 1).params[0]
    wanted = reference.round_to_bfloat16(
        exact, seed=SEED, tensor=0, steps_done=int(steps_done)
    )
    assert torch.equal(adam_replay(late, 1, seed=SEED).params[0], wanted)


def test_what_bfloat16_holds_stays_and_what_is_not_finite_too() -> None:
    tensors = make_tensors([64], torch.bfloat16)
    tensors.grads[0].zero_()
    tensors.params[0][3], tensors.params[0][4] = math.nan, -math.inf
    after = adam_replay(tensors, 2, seed=SEED).params[0]
    assert torch.equal(after.isnan(), tensors.params[0].isnan())
    finite = ~after.isnan()
    assert torch.equal(after[finite], tensors.params[0][finite])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16], ids=str
)
def test_other_dtypes_are_rounded_as_ever(dtype: torch.dtype) -> None:
    tensors = make_tensors([500], dtype)
    assert_same_bits(adam_replay(tensors, 2, seed=SEED), adam_replay(tensors, 2))


def test_bits_depend_on_neither_threads_nor_strides(
    threads: Callable[[int], None],
) -> None:
    tensors = make_tensors([(300, 333), (40, 30)], torch.bfloat16, steps_done=2.0)
    threads(1)
    alone = adam_replay(tensors, 2, seed=SEED)
    threads(3)
    assert_same_bits(adam_replay(tensors, 2, seed=SEED), alone)
    wide = torch.zeros(300, 400, dtype=torch.bfloat16)[:, :333].copy_(tensors.params[0])
    strided = tensors.clone()
    strided.params[0] = wide
    OPS.adam_replay_(*strided, repeats=2, seed=SEED, **OPTIONS)
    assert torch.equal(strided.params[0], alone.params[0])


@pytest.mark.parametrize("lr_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_lr_as_a_tensor(lr_dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rate = torch.full(shape, 3e-3, dtype=lr_dtype)
    for options in ({}, {"weight_decay": 0.1, "decoupled": True}):
        tensors = make_tensors([33, 5], torch.float64, steps_done=4.0)
        wanted = adam_replay(tensors, 3, **{**options, "lr": rate.item()})
        assert_same_bits(adam_replay(tensors, 3, lr_tensor=rate, **options), wanted)


@pytest.mark.refusal("operator")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lr_tensor": torch.ones(2)},
            r"lr_tensor must hold one float32 or float64 value, got float32 of shape \[2\]",
        ),
        (
            {"lr_tensor": torch.tensor(1)},
            r"lr_tensor must hold one float32 or float64 value, got int64 of shape \[\]",
        ),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^adam_replay_: {message}$"):
        OPS.adam_replay_(*make_tensors([3]), repeats=1, **OPTIONS, **options)


@pytest.mark.cpu_only("a learning rate on the device is read by the launch, unchecked")
@pytest.mark.refusal("operator")
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_bad_values_of_an_lr_tensor(value: float) -> None:
    message = f"^adam_replay_: lr_tensor must be finite and >= 0, got {value:g}$"
    with pytest.raises(ValueError, match=message):
        OPS.adam_replay_(
            *make_tensors([3]), repeats=1, **OPTIONS, lr_tensor=torch.tensor(value)
        )


def test_opcheck() -> None:
    tensors = make_tensors([(3, 4), 0, 5], torch.bfloat16)
    options = {**OPTIONS, "repeats": 2, "seed": 3, "lr_tensor": torch.tensor(1e-3)}
    torch.library.opcheck(OPS.adam_replay_.default, tuple(tensors), options)


def bfloat16_params() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(40, generator=generator).bfloat16() for _ in range(3)]
    for param in params:
        param.requires_grad_()
        param.grad = torch.randn(40, generator=generator).bfloat16()
    return params


def test_optimizer_rounds_each_group_with_numbers_of_its_own() -> None:
    params = bfloat16_params()
    starts = [param.detach().clone() for param in params]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = ReplayAdam(groups, lr=1e-3, rounding_seed=5)
    optimizer.step(repeats=2)
    optimizer.step()
    # A call adds the place of its first parameter.
    for members, seed in ((range(2), 5), (range(2, 3), 7)):
        states = [optimizer.state[params[i]] for i in members]
        wanted = AdamTensors(
            [starts[i].clone() for i in members],
            [params[i].grad for i in members],
            [torch.zeros_like(state["exp_avg"]) for state in states],
            [torch.zeros_like(state["exp_avg_sq"]) for state in states],
            [torch.tensor(0.0) for _ in states],
        )
        wanted = adam_replay(adam_replay(wanted, 2, seed=seed), 1, seed=seed)
        for i, param in zip(members, wanted.params, strict=True):
            assert torch.equal(params[i].detach(), param)


def test_parameters_that_are_stepped_one_by_one_have_numbers_of_their_own() -> None:
    params = [torch.ones(4096, dtype=torch.bfloat16) for _ in range(2)]
    gradient = torch.ones_like(params[0])
    optimizer = ReplayAdam(params, lr=1e-3, rounding_seed=5)
    for param in params:
        optimizer.step(grads={param: gradient})
    assert 0.2 < (params[0] != params[1]).double().mean() < 0.8


@pytest.mark.refusal("operator")
@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, r"rounding_seed must be in 0\.\.2147483647, got -1"),
        (1.5, TypeError, "rounding_seed must be an int, got float"),
    ],
)
def test_bad_seeds(seed: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^ReplayAdam: {message}$"):
        ReplayAdam([torch.zeros(3)], rounding_seed=seed)


def test_capturable_reads_lr_from_its_tensor_at_every_step() -> None:
    params, twins = bfloat16_params(), bfloat16_params()
    rate = torch.tensor(1e-2)
    optimizer = ReplayAdam(params, lr=rate, capturable=True)
    peer = ReplayAdam(twins, lr=1e-2)
    for _ in range(3):
        optimizer.step(repeats=2)
        peer.step(repeats=2)
        rate *= 0.5
        peer.param_groups[0]["lr"] = rate.item()
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)
    assert optimizer.state[params[0]]["step"].device == params[0].device


def test_state_dict_keeps_the_seed() -> None:
    params, twins = bfloat16_params(), bfloat16_params()
    optimizer = ReplayAdam(params, rounding_seed=9)
    optimizer.step()
    restored = ReplayAdam(twins)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for twin, param in zip(twins, params, strict=True):
        twin.data.copy_(param.detach())
    optimizer.step(repeats=3)
    restored.step(repeats=3)
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)
