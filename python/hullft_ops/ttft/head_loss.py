"""The loss of a linear head over a vocabulary, and its gradients, without storing all logits."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A CPU multiplies this many rows of the weight at once. On a whole vocabulary MKL reaches little
# more than half of its speed.
_TILE = 1024


def linear_mean_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: int,
) -> Tensor:
    """The mean cross-entropy of ``linear(hidden, weight, bias)``, ``rows`` positions at a time.

    It computes the gradients too: use it only to train. Products are in the dtype of autocast if
    that is on.

    Args:
        hidden: ``[T, d]``.
        weight: ``[V, d]``.
        bias: ``[V]`` or None.
        targets: int64 ``[T]``.
        rows: positions whose logits exist at once.

    Returns:
        A scalar, float64 for float64 products and float32 for all others.
    """
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        loss: Tensor = _LinearMeanLoss.apply(hidden, weight, bias, targets, rows, dtype)  # type: ignore[no-untyped-call]
    return loss


class _LinearMeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        gradients = _GradientSums(ctx.needs_input_grad)
        precise = torch.promote_types(dtype, torch.float32)
        factor = weight.to(dtype)
        share = 1 / len(targets)
        losses = []
        for start in range(0, len(targets), rows):
            chunk = hidden[start : start + rows].to(dtype)
            target = targets[start : start + rows, None]
            logits = _logits(chunk, factor, bias)
            log_p = torch.log_softmax(logits, dim=-1, dtype=precise)
            del logits
            losses.append(share * log_p.gather(1, target))
            # The gradient of the logits, in the memory of their logarithms.
            error = log_p.exp_().mul_(share)
            error.scatter_add_(1, target, error.new_full(target.shape, -share))
            gradients.add(error, chunk, factor)
        ctx.gradients = gradients.of(hidden, weight, bias)
        return -torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        # Nobody else may hold a gradient that becomes the parameter's own.
        del ctx.gradients
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad)
        return (*gradients, None, None, None)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden.new_empty(len(hidden), len(weight))
    for tile in _tiles(weight):
        torch.mm(hidden, weight[tile].T, out=logits[:, tile])
    if bias is not None:
        logits.add_(bias.to(logits.dtype))
    return logits


def _tiles(weight: Tensor) -> Iterator[slice]:
    step = _TILE if weight.device.type == "cpu" else len(weight)
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


class _GradientSums:
    """Sums the gradients of hidden states, weight and bias over chunks, if they are needed."""

    def __init__(self, needs: tuple[bool, ...]) -> None:
        self._needs_hidden, self._needs_weight, self._needs_bias = needs[:3]
        self._hidden: list[Tensor] = []
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def add(self, error: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Add a chunk's; ``error`` [rows, V] is the gradient of its logits."""
        if self._needs_bias:
            total = error.sum(0)
            self._bias = total if self._bias is None else self._bias + total
        factor = error.to(hidden.dtype)
        if self._needs_hidden:
            self._hidden.append(factor @ weight)
        if not self._needs_weight:
            return
        if self._weight is None:
            # In the precision of the sum.
            self._weight = error.new_zeros(weight.shape)
        for tile in _tiles(weight):
            self._weight[tile] += factor[:, tile].T @ hidden

    def of(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> list[Tensor | None]:
        """The gradients of hidden states, weight and bias, in their dtypes."""
        of_hidden = torch.cat(self._hidden).to(hidden.dtype) if self._hidden else None
        of_weight = self._weight
        if of_weight is not None:
            of_weight = of_weight.to(weight.dtype)
        of_bias = self._bias
        if of_bias is not None and bias is not None:
            of_bias = of_bias.to(bias.dtype)
        return [of_hidden, of_weight, of_bias]
