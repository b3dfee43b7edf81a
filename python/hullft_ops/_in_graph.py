"""How torch.compile sees the gradients. It imports this module when it first traces an operator.

As calls in its graph, which autograd and torch.func then differentiate: into an autograd.Function
torch.compile does not look where it has a `jvp`, and it forgets the gradient under torch.func.
"""

import torch

from hullft_ops import _lstsq_gradients, _ops

for _function in (
    _ops.Undifferentiable,
    _lstsq_gradients.Solution,
    _lstsq_gradients.Adjoint,
):
    torch.compiler.allow_in_graph(_function)  # type: ignore[no-untyped-call]
