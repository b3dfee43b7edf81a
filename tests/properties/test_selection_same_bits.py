"""What must not change a bit of any selection operator's answer."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from problems import DTYPES, METHODS, REACH, VARIANTS, without_small_entries
from properties.selection_problems import (
    OPERATORS,
    Problem,
    assert_same_bits,
    build,
    problems,
    selection,
)

every_operator = pytest.mark.parametrize("operator", OPERATORS)
one_order_of_sums = pytest.mark.cpu_only(
    "on CUDA shared pools, copies of them and single queries may be summed in other orders"
)


@cache
def large(batch: int, dtype: torch.dtype, kind: str) -> Problem:
    """Enough that a single query's rows are shared. Drawing it takes longer than solving it."""
    sizes = {"candidates": 80, "dim": 1024, "n_select": 10}
    return build(0, batch, **sizes, dtype=dtype, kind=kind)


@every_operator
@given(problem=problems())
def test_a_batch_equals_single_queries(operator: str, problem: Problem) -> None:
    run = OPERATORS[operator]
    together = run(problem)

    for b in range(problem.batch):
        alone = run(problem.of_query(b))
        assert_same_bits(tuple(t[b] for t in together), alone)


@one_order_of_sums
@every_operator
@given(problem=problems(), data=st.data())
def test_ragged_pools_equal_separate_ones(
    operator: str, problem: Problem, data: st.DataObject
) -> None:
    """Whatever lies past a pool's end is never read: it is NaN here."""
    run = OPERATORS[operator]
    size = st.integers(problem.n_select, problem.candidates)
    sizes = data.draw(st.lists(size, min_size=problem.batch, max_size=problem.batch))
    pool = problem.pool.clone()
    weights = problem.weights.clone()

    for b, n in enumerate(sizes):
        pool[b, n:] = float("nan")
        weights[b, n:] = float("nan")

    ragged = replace(problem, pool=pool, weights=weights)

    together = run(ragged, torch.tensor(sizes))
    for b, n in enumerate(sizes):
        alone = run(problem.of_query(b, n))
        if operator == "integerize":
            assert (together[0][b, n:] == 0).all()
            assert torch.equal(together[0][b, :n], alone[0])
        else:
            assert_same_bits(tuple(t[b] for t in together), alone)


@every_operator
@pytest.mark.parametrize("batch", [1, 36])
@given(dtype=st.sampled_from(DTYPES), kind=st.sampled_from(["near", "wide"]))
@settings(max_examples=min(4, settings.default.max_examples))
def test_the_number_of_threads(
    operator: str, batch: int, dtype: torch.dtype, kind: str
) -> None:
    problem = large(batch, dtype, kind)
    before = torch.get_num_threads()
    answers = []

    try:
        for n in (1, 3, 7):
            torch.set_num_threads(n)
            answers.append(OPERATORS[operator](problem))
    finally:
        torch.set_num_threads(before)

    for answer in answers[1:]:
        assert_same_bits(answer, answers[0])


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """Every second element of a wider tensor, the others NaN."""
    shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
    wide = torch.full(shape, float("nan"), dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def batch_inside(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def every_other_row(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.repeat_interleave(2, dim=-2)[..., ::2, :]


def offset(tensor: torch.Tensor) -> torch.Tensor:
    """Dense rows with gaps between them, off their allocation's start."""
    shape = (*tensor.shape[:-1], tensor.shape[-1] + 3)
    wide = torch.full(shape, float("nan"), dtype=tensor.dtype)
    wide[..., 1:-2] = tensor
    return wide[..., 1:-2]


def from_numpy(tensor: torch.Tensor) -> torch.Tensor:
    """Memory that torch does not own. NumPy has no bfloat16."""
    if tensor.dtype == torch.bfloat16:
        bits = tensor.view(torch.int16).numpy()
        return torch.from_numpy(bits).view(torch.bfloat16)

    return torch.from_numpy(tensor.numpy())


@pytest.mark.cpu_only(
    "on CUDA rows at multiples of 16 bytes are summed in an order of their own"
)
@every_operator
@given(
    problem=problems(),
    view=st.sampled_from(
        [strided, transposed, batch_inside, every_other_row, offset, from_numpy]
    ),
)
def test_views(operator: str, problem: Problem, view: object) -> None:
    assert callable(view)

    run = OPERATORS[operator]
    viewed = problem.mapped(view)
    viewed = replace(viewed, weights=view(problem.weights))

    assert_same_bits(run(viewed), run(problem))


@one_order_of_sums
@every_operator
@given(problem=problems(), data=st.data())
def test_expanded_views(operator: str, problem: Problem, data: st.DataObject) -> None:
    """One pool for a ragged batch: shared, expanded with stride 0, or copied."""
    run = OPERATORS[operator]
    size = st.integers(problem.n_select, problem.candidates)
    sizes = data.draw(st.lists(size, min_size=problem.batch, max_size=problem.batch))
    shared = problem.pool[0]
    expanded = shared.expand(problem.pool.shape)
    copied = replace(problem, pool=expanded.contiguous())
    expected = run(copied, torch.tensor(sizes))

    for pool in (shared, expanded):
        answer = run(replace(problem, pool=pool), torch.tensor(sizes))
        assert_same_bits(answer, expected)


# Which power of the scale multiplies each output.
POWERS = {
    **dict.fromkeys([*VARIANTS, "knn"], (0, 0, 0, 0, 1, 2, 0)),
    **dict.fromkeys(["simplex_lstsq", "nnls"], (0, 1, 2, 0, 0)),
    "sift": (0, 0, 0, 0, 1, 2, 0, 0, 2),
    "lmo": (0, 2, 0, 2),
    "integerize": (0,),
}
# What a tiny output is rounded to.
SMALLEST = {torch.float32: 2.0**-149, torch.float64: 0.0}


@every_operator
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_scaling_by_a_power_of_two(
    operator: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Every product and sum scales exactly, so that the same choices are made."""
    base = data.draw(problems(dtypes=[dtype])).mapped(without_small_entries)
    wanted = OPERATORS[operator](base)
    reach = REACH[dtype]

    for exponent in (-reach, data.draw(st.integers(-reach, reach)), reach):
        scale = 2.0**exponent
        scaled = base.mapped(lambda t, s=scale: t * s)
        scaled = replace(scaled, noise=base.noise * scale**2)
        found = OPERATORS[operator](scaled)

        for a, b, power in zip(found, wanted, POWERS[operator], strict=True):
            assert a.dtype == b.dtype

            error = a.double() - b.double() * scale**power
            bound = SMALLEST[a.dtype] if power else 0

            assert error.abs().max() <= bound


@pytest.mark.parametrize("operator", [*VARIANTS, "sift", "lmo"])
@given(problem=problems(), data=st.data())
def test_copies_of_candidates_at_the_end(
    operator: str, problem: Problem, data: st.DataObject
) -> None:
    """Ties go to the lowest index, so that a copy of a row is never taken."""
    index = st.integers(0, problem.candidates - 1)
    copies = data.draw(st.lists(index, max_size=10))
    order = torch.tensor([*range(problem.candidates), *copies])
    run = OPERATORS[operator]
    with_copies = problem.with_rows(order)

    assert_same_bits(run(with_copies), run(problem))


@pytest.mark.parametrize("operator", METHODS)
@given(problem=problems(), data=st.data())
def test_candidates_equal_gathered_pools(
    operator: str, problem: Problem, data: st.DataObject
) -> None:
    """Candidates in any order and more than once, padded with -1, in a view."""
    embeddings = problem.pool.flatten(0, 1)
    shape = (problem.batch, problem.candidates)
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randint(len(embeddings), shape, generator=generator)
    size = st.integers(problem.n_select, problem.candidates)
    sizes = data.draw(st.lists(size, min_size=problem.batch, max_size=problem.batch))
    gathered = replace(problem, pool=embeddings[candidates])
    in_place = replace(problem, pool=embeddings)
    run = selection(operator)
    expected = run(gathered, torch.tensor(sizes))

    for b, n in enumerate(sizes):
        candidates[b, n:] = -1

    viewed = candidates.t().contiguous().t()

    assert_same_bits(run(in_place, candidates=viewed), expected)

    for b in range(problem.batch):
        of_query = replace(in_place, query=problem.query[b])
        alone = run(of_query, candidates=candidates[b])
        assert_same_bits(tuple(alone), tuple(t[b] for t in expected))
