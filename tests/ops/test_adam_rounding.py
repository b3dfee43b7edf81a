"""Stochastic rounding of bfloat16 parameters, and a learning rate that is a tensor."""

import math

import pytest
import torch

from adam_problems import (
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
    published = [int(word, 16) for word in words.split()]

    assert list(reference.philox(counter, key)) == published


def before_rounding(
    tensors: AdamTensors, repeats: int, **options: float | bool
) -> AdamTensors:
    """The same arithmetic on the same values, kept in float32."""
    columns = [[tensor.float() for tensor in column] for column in tensors[:4]]
    return adam_replay(AdamTensors(*columns, tensors.steps), repeats, **options)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_reference(
    simd_level: str, grad_dtype: torch.dtype, weight_decay: float
) -> None:
    """Bit for bit, tails and empty tensors included; moments are rounded to nearest."""
    tensors = make_tensors(
        [1003, 0, 17, 1, 8],
        torch.bfloat16,
        grad_dtype=grad_dtype,
        steps_done=70.0,
    )
    exact = before_rounding(tensors, 3, weight_decay=weight_decay)
    after = adam_replay(tensors, 3, seed=SEED, weight_decay=weight_decay)

    for i, value in enumerate(exact.params):
        rounded = reference.round_to_bfloat16(value, seed=SEED, tensor=i, steps_done=70)
        assert torch.equal(after.params[i], rounded)

    nearest = adam_replay(tensors, 3, weight_decay=weight_decay)
    assert_same_bits(after._replace(params=[]), nearest._replace(params=[]))

    assert not torch.equal(after.params[0], nearest.params[0])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_right_on_average(share: float) -> None:
    """A step of a quarter of the last place goes up in a quarter of the cases.

    Nearest would never move. Five standard deviations of the mean of independent bits.
    """
    n = 200_000
    ones = make_tensors([n], torch.bfloat16, grad_dtype=torch.float32)
    ones.params[0].fill_(1.0)
    ones.grads[0].fill_(-1.0)
    lr = share * 2.0**-7  # of the last place at 1
    after = adam_replay(ones, 1, seed=SEED, lr=lr, beta1=0.0, beta2=0.0, eps=0.0)

    up = (after.params[0] > 1).double()
    variance = share * (1 - share)
    deviation = math.sqrt(variance / n)

    assert abs(up.mean().item() - share) <= 5 * deviation

    centred = up - share
    product = (centred[1:] * centred[:-1]).mean().item()

    assert abs(product) <= 5 * variance / math.sqrt(n)


def assert_independent(first: torch.Tensor, second: torch.Tensor) -> None:
    assert 0.1 < (first != second).double().mean().item() < 0.9


def test_what_bfloat16_holds_stays_and_what_is_not_finite_too() -> None:
    tensors = make_tensors([64], torch.bfloat16)
    tensors.grads[0].zero_()
    tensors.params[0][3] = math.nan
    tensors.params[0][4] = -math.inf
    after = adam_replay(tensors, 2, seed=SEED).params[0]

    torch.testing.assert_close(after, tensors.params[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16], ids=str
)
def test_other_dtypes_are_rounded_as_ever(dtype: torch.dtype) -> None:
    tensors = make_tensors([500], dtype)
    with_seed = adam_replay(tensors, 2, seed=SEED)
    without = adam_replay(tensors, 2)

    assert_same_bits(with_seed, without)


def bfloat16_params() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(40, generator=generator).bfloat16() for _ in range(3)]

    for param in params:
        gradient = torch.randn(40, generator=generator)
        param.requires_grad_()
        param.grad = gradient.bfloat16()

    return params


@pytest.mark.parametrize("in_groups", [False, True])
def test_parameters_that_do_not_step_together_have_numbers_of_their_own(
    in_groups: bool,
) -> None:
    params = [torch.ones(4096, dtype=torch.bfloat16) for _ in range(2)]
    grads = {param: torch.ones_like(param) for param in params}
    groups = [{"params": [param]} for param in params]
    optimizer = ReplayAdam(groups if in_groups else params, lr=1e-3, rounding_seed=5)

    for step in [grads] if in_groups else [{param: grads[param]} for param in params]:
        optimizer.step(grads=step)

    assert_independent(params[0], params[1])


def test_capturable_reads_lr_from_its_tensor_at_every_step() -> None:
    params = bfloat16_params()
    twins = bfloat16_params()
    rate = torch.tensor(1e-2)
    optimizer = ReplayAdam(params, lr=rate, capturable=True)
    peer = ReplayAdam(twins, lr=1e-2)

    for _ in range(3):
        optimizer.step(repeats=2)
        peer.step(repeats=2)
        rate *= 0.5
        peer.param_groups[0]["lr"] = rate.item()

    assert all(map(torch.equal, params, twins))
    assert optimizer.state[params[0]]["step"].device == params[0].device
