"""The gradients under torch.compile, which imports this module when it first traces an operator.

torch.compile traces no autograd.Function that has a `jvp`, and under torch.func it forgets the
gradient. So these stand in its graph as calls, which autograd and torch.func differentiate.
"""

import torch

from hullft_ops import _lstsq_gradients, _ops

for _function in (
    _ops.Undifferentiable,
    _lstsq_gradients.Solution,
    _lstsq_gradients.Adjoint,
):
    torch.compiler.allow_in_graph(_function)  # type: ignore[no-untyped-call]
