"""CUDA refuses bad input in the words of the CPU. No GPU is needed: checks come before any launch.

The bad calls of bad_arguments.py and bad_tensors.py run again: through the public functions on fake
CUDA tensors, and through the host side of the CUDA operators, which looks at CPU tensors as at any.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

import hullft_ops
from adam_problems import OPS, OPTIONS, make_tensors
from bad_arguments import (
    WRONG_DTYPES,
    WRONG_FOR_OPERATORS,
    WRONG_IN_PUBLIC,
    WRONG_OBJECTS,
    WRONG_VALUES,
    Bad,
)
from bad_tensors import (
    BAD_ADAM_OPTIONS,
    BAD_RATES,
    bad_accumulations,
    bad_adam_tensors,
    overlapping_step_counts,
)
from hullft_ops import _C
from on_device import elsewhere, operators, with_cuda_checks

Call = Callable[[], object]
PUBLIC = WRONG_OBJECTS + WRONG_DTYPES + WRONG_VALUES + WRONG_IN_PUBLIC
DIRECT = WRONG_DTYPES + WRONG_VALUES + WRONG_FOR_OPERATORS

needs_cuda_operators = pytest.mark.skipif(
    not _C.build_info()["cuda"], reason="this build has no CUDA operators"
)


def error_of(call: Call) -> tuple[type[Exception], str]:
    with pytest.raises((TypeError, ValueError, RuntimeError)) as raised:
        call()

    return raised.type, str(raised.value)


def test_every_operator_is_called_badly() -> None:
    names = {operator._schema.name.split("::")[1] for operator in operators()}
    others = {"adam_replay_", "grad_accumulate_", "lstsq_adjoint"}

    for calls in (DIRECT, PUBLIC):
        assert {bad.operator for bad in calls} == names - others


def fake_cuda(value: object) -> object:
    """A tensor of that kind on CUDA, within a FakeTensorMode."""
    if not isinstance(value, torch.Tensor):
        return value

    return torch.empty_strided(
        value.shape, value.stride(), dtype=value.dtype, device="cuda"
    )


@pytest.mark.parametrize("bad", PUBLIC, ids=Bad.pattern)
def test_public_functions_refuse_fake_cuda_tensors(bad: Bad) -> None:
    """A message may name the device, and must otherwise be the same."""
    function = getattr(hullft_ops, bad.operator)
    expected = error_of(lambda: function(**bad.arguments))

    with FakeTensorMode():
        arguments = tree_map(fake_cuda, bad.arguments)
        error, message = error_of(lambda: function(**arguments))

    assert (error, message.replace("cuda:0", "cpu")) == expected


def assert_cuda_refuses(call: Call) -> None:
    """With the same type and the same text as the CPU."""
    expected = error_of(call)
    with elsewhere(with_cuda_checks):
        error, message = error_of(call)

    if "overlaps" in message:
        # Of several overlaps the one at the lowest address is named.
        expected = (expected[0], re.sub(r"\[\d\]", "[i]", expected[1]))
        message = re.sub(r"\[\d\]", "[i]", message)

    assert (error, message) == expected


@needs_cuda_operators
@pytest.mark.parametrize("bad", DIRECT, ids=Bad.pattern)
def test_selection_operators(bad: Bad) -> None:
    operator, arguments = bad.of_operator()
    assert_cuda_refuses(lambda: operator(**arguments))


def bad_sweeps() -> Iterator[Call]:
    tensors = make_tensors([3])
    adam = [tensors for _, tensors in bad_adam_tensors().values()]
    for bad in (*adam, *overlapping_step_counts().values()):
        yield partial(OPS.adam_replay_, *bad, repeats=1, **OPTIONS)

    for _, bad in (*BAD_ADAM_OPTIONS, *((_, {"lr_tensor": r}) for _, r in BAD_RATES)):
        yield partial(OPS.adam_replay_, *tensors, **{"repeats": 1, **OPTIONS, **bad})

    for caches, grads, factors in bad_accumulations().values():
        yield partial(OPS.grad_accumulate_, caches, grads, **factors)


@needs_cuda_operators
@pytest.mark.parametrize("call", [*bad_sweeps()])
def test_sweeps(call: Call) -> None:
    assert_cuda_refuses(call)


@needs_cuda_operators
@pytest.mark.parametrize(
    "select", [hullft_ops.fw_select, hullft_ops.knn_select, hullft_ops.sift_select]
)
def test_more_candidates_than_a_block_counts(select: Callable[..., object]) -> None:
    pool = torch.zeros(1, 2).expand(2**30 + 1, 2)
    query = torch.zeros(1, 2)

    with (
        elsewhere(with_cuda_checks),
        pytest.raises(ValueError, match="1073741824 candidates, got 1073741825"),
    ):
        select(pool, query, 1)
