"""TorchJD's aggregators with this package's solver: UPGrad, DualProj and MGDA, exactly.

Run on a toy of three losses: python examples/torchjd_projector.py
It needs TorchJD: pip install torchjd
"""

import torch
from torch import Tensor
from torchjd.aggregation import DualProj, GramianWeightedAggregator, UPGrad, Weighting
from torchjd.linalg import DualConeProjector

import hullft_ops


class HullProjector(DualConeProjector):
    """Projections onto the dual cone: ``min v^T G v`` over ``v >= u``, for all ``u`` at once.

    With ``v = u + a`` that is non-negative least squares: ``min a^T G a + 2 (G u)^T a``. The
    Gramian may be singular. Its diagonal grows by the rounding of its own dtype, so that the
    order of the losses does not choose among many solutions.
    """

    def __call__(self, U: Tensor, G: Tensor) -> Tensor:  # noqa: N803
        gram, targets = G.detach().cpu().double(), U.detach().cpu().double()
        gram = gram + 8 * torch.finfo(G.dtype).eps * gram.trace() * torch.eye(len(gram))
        products = -(targets @ gram).reshape(-1, len(gram))
        added = hullft_ops.nnls(gram=gram, products=products).weights
        return (targets + added.view(targets.shape)).to(U)


class MinimumNormWeighting(Weighting[Tensor]):
    """MGDA's weights: of the convex combination of gradients that has the least norm."""

    def forward(self, gramian: Tensor, /) -> Tensor:
        gram = gramian.detach().cpu().double()
        weights = hullft_ops.simplex_lstsq(
            gram=gram, products=torch.zeros(len(gram), dtype=gram.dtype)
        ).weights
        return weights.to(gramian)


def mgda() -> GramianWeightedAggregator:
    return GramianWeightedAggregator(MinimumNormWeighting())


def main() -> None:
    torch.manual_seed(0)
    jacobian = torch.randn(3, 100)
    for aggregator in (
        UPGrad(projector=HullProjector()),
        DualProj(projector=HullProjector()),
        mgda(),
    ):
        direction = aggregator(jacobian)
        # No loss rises along the direction.
        print(f"{aggregator}: {(jacobian @ direction).min().item():.3f} >= 0")


if __name__ == "__main__":
    main()
