"""The example with TorchJD: its projections satisfy the conditions of their optimum."""

import runpy
from pathlib import Path

import pytest
import torch

import hullft_ops

pytestmark = pytest.mark.cpu_only("gram= runs on the CPU for now")

EXAMPLE = Path(__file__).parents[2] / "examples" / "torchjd_projector.py"


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


@pytest.mark.parametrize("rank", [0, 1, 5, 12])
def test_projections_onto_the_dual_cone(example: dict, rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    factors = [torch.randn(n, rank, generator=generator) for n in (12, 40)]
    jacobian = (factors[0] @ factors[1].T).double()
    gramian = jacobian @ jacobian.T
    targets = torch.rand(2, 3, 12, generator=generator).double()
    weights = example["HullProjector"]()(targets, gramian)
    slopes = weights @ gramian
    scale = gramian.trace() + 1e-30

    assert weights.shape == targets.shape
    assert (weights >= targets).all()
    assert slopes.min() >= -1e-12 * scale
    assert ((weights - targets) * slopes).abs().max() <= 1e-12 * scale


def test_the_aggregators_and_the_example(
    example: dict, capsys: pytest.CaptureFixture
) -> None:
    jacobian = torch.randn(4, 60, generator=torch.Generator().manual_seed(0))
    direction = example["mgda"]()(jacobian)
    nearest = hullft_ops.simplex_lstsq(jacobian, torch.zeros(60)).weights @ jacobian

    assert (direction - nearest).abs().max() <= 1e-5

    example["main"]()
    printed = capsys.readouterr().out

    assert printed.count(">= 0") == 3
    assert "-" not in printed
