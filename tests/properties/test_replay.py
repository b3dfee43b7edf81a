"""What must hold of adam_replay_ and grad_accumulate_, and of the classes that call them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adam_problems import (
    OPS,
    AdamTensors,
    adam_replay,
    assert_near_reference,
    assert_same_bits,
    make_tensors,
)
from hullft_ops import reference
from problems import DTYPES

# About the length of a vector, of a block of them, and of a thread's piece.
SIZES = st.lists(
    st.sampled_from([0, 1, 7, 16, 33, 100, 40_000]),
    min_size=1,
    max_size=4,
)
OPTIONS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-3, 0.5]),
        "beta1": st.sampled_from([0.0, 0.5, 0.9]),
        "beta2": st.sampled_from([0.0, 0.99, 0.999]),
        "eps": st.sampled_from([1e-8, 1e-3]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "decoupled": st.booleans(),
        "maximize": st.booleans(),
    }
)
STEPS_DONE = st.sampled_from([0.0, 1.0, 40.0])
WIDE = [torch.float32, torch.float64]


@st.composite
def adam_problems(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES) -> AdamTensors:
    return make_tensors(
        draw(SIZES),
        draw(st.sampled_from(dtypes)),
        grad_dtype=draw(st.sampled_from(DTYPES)),
        steps_done=draw(STEPS_DONE),
        seed=draw(st.integers(0, 100)),
    )


@given(
    tensors=adam_problems(WIDE),
    options=OPTIONS,
    first=st.integers(1, 3),
    then=st.integers(1, 3),
)
def test_replays_add_up(
    tensors: AdamTensors, options: dict[str, Any], first: int, then: int
) -> None:
    """Where moments are kept in the arithmetic's own dtype, nothing is rounded between calls."""
    after_first = adam_replay(tensors, first, **options)
    in_two_calls = adam_replay(after_first, then, **options)
    at_once = adam_replay(tensors, first + then, **options)

    assert_same_bits(in_two_calls, at_once)


@given(tensors=adam_problems(), options=OPTIONS)
def test_an_element_does_not_depend_on_its_place(
    tensors: AdamTensors, options: dict[str, Any]
) -> None:
    """One concatenated tensor, or the tensors in another order."""
    apart = adam_replay(tensors, 2, **options)

    columns = [[torch.cat(column)] for column in tensors[:4]]
    concatenated = AdamTensors(*columns, tensors.steps[:1])
    whole = adam_replay(concatenated, 2, **options)

    assert torch.equal(torch.cat(apart.params), whole.params[0])
    assert torch.equal(torch.cat(apart.exp_avgs), whole.exp_avgs[0])

    backwards = adam_replay(in_reverse(tensors), 2, **options)
    assert_same_bits(in_reverse(backwards), apart)


def in_reverse(tensors: AdamTensors) -> AdamTensors:
    return AdamTensors(*[column[::-1] for column in tensors])


@given(tensors=adam_problems(), options=OPTIONS, repeats=st.integers(1, 4))
def test_equals_the_reference(
    tensors: AdamTensors, options: dict[str, Any], repeats: int
) -> None:
    assert_near_reference(tensors, repeats, **options)


def gaps(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.full((len(tensor), 2), float("nan"), dtype=tensor.dtype)
    wide[:, 1] = tensor
    return wide[:, 1]


@given(tensors=adam_problems(), options=OPTIONS, viewed=st.integers(0, 3))
def test_strided_tensors_equal_dense_ones(
    tensors: AdamTensors, options: dict[str, Any], viewed: int
) -> None:
    expected = adam_replay(tensors, 2, **options)

    columns = list(tensors.clone())
    columns[viewed] = [gaps(tensor) for tensor in columns[viewed]]
    strided = AdamTensors(*columns)
    OPS.adam_replay_(*strided, repeats=2, **options)

    assert_same_bits(strided, expected)


def gaps_between_rows(image: torch.Tensor) -> torch.Tensor:
    shape = (*image.shape[:-1], 3 * image.shape[-1])
    wide = torch.full(shape, float("nan"), dtype=image.dtype)
    wide[..., 2:5] = image
    return wide[..., 2:5]


def channels_last(image: torch.Tensor) -> torch.Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def ends_swapped(image: torch.Tensor) -> torch.Tensor:
    return image.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)


IMAGE = (4, 6, 5, 3)
LAYOUT = st.sampled_from(
    [torch.Tensor.contiguous, channels_last, ends_swapped, gaps_between_rows]
)


@given(
    dtype=st.sampled_from(DTYPES),
    options=OPTIONS,
    layouts=st.tuples(LAYOUT, LAYOUT, LAYOUT, LAYOUT),
)
@settings(max_examples=3 * settings.default.max_examples)
def test_dimensions_in_any_order(
    dtype: torch.dtype, options: dict[str, Any], layouts: Sequence[Callable]
) -> None:
    plain = make_tensors([IMAGE, (3,)], dtype, steps_done=2.0)
    expected = adam_replay(plain, 2, **options)

    strided = plain.clone()
    for column, layout in zip(strided[:4], layouts, strict=True):
        column[0] = layout(column[0])

    strides = [column[0].stride() for column in strided]
    OPS.adam_replay_(*strided, repeats=2, **options)

    assert [column[0].stride() for column in strided] == strides

    assert_same_bits(strided, expected)


def with_threads(run: Callable[[], Any]) -> list[Any]:
    before = torch.get_num_threads()
    answers = []

    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            answers.append(run())
    finally:
        torch.set_num_threads(before)

    return answers


@given(tensors=adam_problems(), options=OPTIONS, seed=st.sampled_from([None, 7]))
def test_the_number_of_threads_does_not_matter(
    tensors: AdamTensors, options: dict[str, Any], seed: int | None
) -> None:
    bfloat16 = tensors.params[0].dtype == torch.bfloat16
    options = {**options, "seed": seed if bfloat16 else None}
    first, *others = with_threads(lambda: adam_replay(tensors, 2, **options))

    for answer in others:
        assert_same_bits(answer, first)


@st.composite
def gradients(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    tensors = make_tensors(
        draw(SIZES),
        draw(st.sampled_from(DTYPES)),
        grad_dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 100)),
    )
    return tensors.params, tensors.grads


def accumulate(
    caches: list[torch.Tensor], grads: list[torch.Tensor], **factors: float
) -> list[torch.Tensor]:
    caches = [c.clone() for c in caches]
    OPS.grad_accumulate_(caches, grads, **factors)
    return caches


FACTOR = st.sampled_from([-1.0, 0.0, 0.25, 1.0, 3.0])


@given(lists=gradients(), alpha=FACTOR, beta=FACTOR)
def test_accumulate(
    lists: tuple[list[torch.Tensor], list[torch.Tensor]], alpha: float, beta: float
) -> None:
    """The reference's value to one rounding of the arithmetic and one of the cache; the same bits
    in one piece, from gradients with gaps, and for any number of threads."""
    caches, grads = lists
    factors = {"alpha": alpha, "beta": beta}
    first, *others = with_threads(lambda: accumulate(caches, grads, **factors))

    for answer in others:
        assert all(map(torch.equal, answer, first))

    for value, cache, grad in zip(first, caches, grads, strict=True):
        exact = reference.grad_accumulate(cache, grad, **factors)
        arithmetic = 0 if value.dtype == torch.float64 else 2**-22
        unit = max(torch.finfo(value.dtype).eps, arithmetic)

        assert torch.allclose(value.double(), exact, rtol=unit, atol=10 * unit)

    one_cache = torch.cat(caches)
    one_grad = torch.cat(grads)
    [whole] = accumulate([one_cache], [one_grad], **factors)

    assert torch.equal(whole, torch.cat(first))

    strided_grads = [gaps(grad) for grad in grads]
    from_strided = accumulate(caches, strided_grads, **factors)

    assert all(map(torch.equal, from_strided, first))
