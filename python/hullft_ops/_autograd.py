"""How operators take part in autograd: each refuses a derivative, or has a class for it."""

from typing import Any

import torch


class Undifferentiable(torch.autograd.Function):
    """An operator that refuses a backward pass, and forward mode, in place of zeros in silence."""

    generate_vmap_rule = True

    @staticmethod
    def forward(op: str, *arguments: Any) -> Any:
        return getattr(torch.ops.hullft_ops, op)(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            f"{ctx.op}: has no gradient, nor a jvp; detach the tensors that it takes as "
            "constants"
        )

    jvp = backward


# Of the operators that take part in every backward pass. The others' results require no gradient,
# which torch.func does not look at.
gradients: dict[str, type[Undifferentiable]] = {}
