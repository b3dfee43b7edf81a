"""The gradients under torch.compile, which imports this module when it first traces an operator.

torch.compile traces no autograd.Function that has a `jvp`, and under torch.func it forgets the
gradient. So these stand in its graph as calls, which autograd and torch.func differentiate.
"""

import torch

from hullft_ops._autograd import Undifferentiable

for _function in (Undifferentiable, *Undifferentiable.__subclasses__()):
    torch.compiler.allow_in_graph(_function)  # type: ignore[no-untyped-call]
