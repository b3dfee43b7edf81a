"""fw_lmo against the definition, and in a loop that is vanilla Frank-Wolfe."""

import pytest
import torch

import hullft_ops
from hullft_ops import reference
from hullft_ops.lmo import fw_lmo
from problems import DTYPES, make_problem


def vertices(pool: torch.Tensor, index: int) -> torch.Tensor:
    return pool[:, index].contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("candidates", "dim"),
    [
        (1, 1),
        (3, 5),
        (17, 9),
        (200, 48),
    ],
)
@pytest.mark.usefixtures("simd_level")
def test_equals_reference(dtype: torch.dtype, candidates: int, dim: int) -> None:
    pool, query = make_problem(0, 3, candidates, dim, dtype)
    current = vertices(pool, candidates - 1)
    step = fw_lmo(pool, query, current)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6

    for b in range(3):
        expected = reference.fw_lmo(pool[b], query[b], current[b])

        assert step.vertex[b].item() == expected.vertex

        for name in ("correlation", "gamma", "gap"):
            value = getattr(step, name)[b]
            error = value.item() - getattr(expected, name)

            assert value.dtype == real
            assert abs(error) <= tolerance


@pytest.mark.usefixtures("simd_level")
def test_a_loop_of_it_is_vanilla_frank_wolfe() -> None:
    pools, queries = make_problem(1, 1, 40, 16)
    pool = pools[0]
    query = queries[0]
    nearest = (pool @ query).argmax()
    current = pool[nearest].clone()

    for _ in range(12):
        step = fw_lmo(pool, query, current)
        current += step.gamma * (pool[step.vertex] - current)

    selection = hullft_ops.fw_select(pool, query, 40, max_iter=12)

    assert selection.num_iter.item() == 12

    residual = (query - current).norm()
    gap = fw_lmo(pool, query, current).gap

    assert abs(selection.residual - residual) <= 1e-12
    assert abs(selection.gap - gap) <= 1e-12


@pytest.mark.parametrize(
    ("length", "gamma"),
    [
        (0.99e-6, 0.0),
        (1.01e-6, 2 / 3),
    ],
)
@pytest.mark.parametrize("norm", [1.0, 2.0**-40, 2.0**40])
def test_a_way_shorter_than_the_documented_one_is_none(
    length: float, gamma: float, norm: float
) -> None:
    pool = torch.tensor([[1.0, length], [0.0, 0.0]], dtype=torch.float64)
    current = torch.tensor([1.0, 0.0], dtype=torch.float64)
    query = torch.tensor([1.0, length * 2 / 3], dtype=torch.float64)
    step = fw_lmo(norm * pool, norm * query, norm * current)

    assert step.vertex.item() == 0
    assert abs(step.gamma.item() - gamma) <= 1e-6


def test_empty_batch() -> None:
    step = fw_lmo(torch.eye(3), torch.zeros(0, 3), torch.zeros(0, 3))
    assert [tuple(tensor.shape) for tensor in step] == [(0,)] * 4
