"""A move of adam_replay_ is a quotient rounded to nearest, whatever the size of its numbers.

With the widest vectors several steps in registers may take their quotients without a division, a
single step does not: both must give the same bits.
"""

import math
from collections.abc import Iterator

import pytest
import torch

from adam_problems import AdamTensors, adam_replay
from hullft_ops import _C
from switches import switched

N = 4096
SETTLED = 1e6
"""Steps after which both corrections of the bias are 1."""


@pytest.fixture(autouse=True)
def _quick_quotients() -> Iterator[bool]:
    """On processors with a fast divider too."""
    yield from switched(_C.quick_quotients, _C.use_quick_quotients, True)


def random_sizes(low: int, high: int, seed: int) -> torch.Tensor:
    """[N] of float32 between 2**low and 2**high, of either sign."""
    generator = torch.Generator().manual_seed(seed)
    exponents = low + (high - low) * torch.rand(
        N, generator=generator, dtype=torch.float64
    )
    signs = torch.randint(2, (N,), generator=generator) * 2 - 1
    return (signs * exponents.exp2()).float()


def from_zero(
    grad: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor
) -> AdamTensors:
    steps = [torch.tensor(SETTLED)]
    return AdamTensors([torch.zeros(len(grad))], [grad], [exp_avg], [exp_avg_sq], steps)


def assert_as_one_by_one(tensors: AdamTensors, **options: object) -> None:
    at_once, one_by_one = adam_replay(tensors, 3, **options), tensors
    for _ in range(3):
        one_by_one = adam_replay(one_by_one, 1, **options)

    for ours, wanted in zip(at_once[:4], one_by_one[:4], strict=True):
        assert torch.equal(ours[0].isnan(), wanted[0].isnan())

        number = ~wanted[0].isnan()

        assert torch.equal(ours[0][number], wanted[0][number])
        assert torch.equal(ours[0][number].signbit(), wanted[0][number].signbit())


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1e-45, 1e-20, 1e20, math.inf, -math.inf, math.nan]
)
@pytest.mark.parametrize("column", ["params", "grads", "exp_avgs", "exp_avg_sqs"])
@pytest.mark.parametrize(
    "decay", [{}, {"weight_decay": 0.1, "decoupled": True}], ids=["Adam", "AdamW"]
)
def test_one_number_unlike_the_others(
    decay: dict[str, object], column: str, value: float
) -> None:
    tensors = from_zero(
        random_sizes(-9, 0, 1), random_sizes(-9, 0, 2), random_sizes(-9, 0, 3).abs()
    )
    for i in (0, 33, 517, N - 1):
        getattr(tensors, column)[0][i] = (
            abs(value) if column == "exp_avg_sqs" else value
        )

    assert_as_one_by_one(tensors, **decay)
