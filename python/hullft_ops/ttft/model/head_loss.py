"""The loss of a linear head over a vocabulary, and its gradients, without storing all logits."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hullft_ops.ttft.model.onednn import multiply, multiply_into

# A CPU multiplies this many rows of the weight at once. On a whole vocabulary MKL reaches little
# more than half of its speed.
_TILE = 1024
# The room for logits is rounded up to a multiple of this many positions.
_ROUNDED = 128


def linear_mean_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: int,
    shares: Tensor | None = None,
    tied: "TiedGradient | None" = None,
) -> Tensor:
    """The mean cross-entropy of ``linear(hidden, weight, bias)``, ``rows`` positions at a time, in
    the dtype of autocast if that is on. It computes the gradients too: use it only to train.

    The shapes are ``[T, d]``, ``[V, d]``, ``[V]`` or None, and int64 ``[T]`` of targets. ``shares``
    is ``[T]``, the share of each position in the mean; None for equal ones. ``tied`` takes the
    weight's gradient to the embedding. The scalar is float64 for float64 products, else float32.
    """
    device = hidden.device.type
    dtype = (
        torch.get_autocast_dtype(device)
        if torch.is_autocast_enabled(device)
        else hidden.dtype
    )
    with torch.autocast(device, enabled=False):
        if shares is None:
            shares = hidden.new_full(
                targets.shape, 1 / len(targets), dtype=torch.float64
            )
        arguments = (hidden, weight, bias, targets, rows, dtype, shares, tied)
        loss: Tensor = _LinearMeanLoss.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


def unscaled(loss: Tensor) -> Tensor:
    """The loss. Its own ``backward()`` now takes the gradients as they are, without a factor of 1:
    reading it would stall a GPU, and the gradient of a vocabulary is large."""
    node: Any = loss.grad_fn
    if hasattr(node, "is_root"):
        node.is_root = True
    return loss


class TiedGradient:
    """The gradient of a head's weight, on its way to the embedding that has the same weight.

    The embedding, which the backward pass reaches last, adds its rows to it. Autograd would make a
    dense gradient first, almost all zeros: 113 of 2,830 MB at the peak of SmolLM2-135M.
    """

    def __init__(self) -> None:
        self.of_head: Tensor | None = None
        self.is_read = False

    def embed(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        """The rows of ``ids``. Their gradients will be added to the head's."""
        self.is_read = True
        arguments = (ids, embedding.weight, embedding.padding_idx, self)
        rows: Tensor = _TiedEmbedding.apply(*arguments)  # type: ignore[no-untyped-call]
        return rows


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, tied: TiedGradient
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.tied, ctx.rows = padding, tied, len(weight)
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        places = ids.flatten()
        rows = grad.flatten(0, -2)
        if ctx.padding is not None:
            rows = rows.masked_fill((places == ctx.padding)[:, None], 0)
        total, ctx.tied.of_head = ctx.tied.of_head, None
        if total is None:
            # The head had none, or the model has read the embedding twice.
            total = rows.new_zeros(ctx.rows, rows.shape[-1])
        if total.device.type == "cpu":
            total.index_add_(0, places, rows.to(total.dtype))
        else:
            # CUDA sorts the places for this, and for no index_add_.
            total.index_put_((places,), rows.to(total.dtype), accumulate=True)
        return None, total, None, None


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
        shares: Tensor,
        tied: TiedGradient | None,
    ) -> Tensor:
        ctx.is_root, ctx.tied = False, tied
        gradients = _Gradients(ctx.needs_input_grad)
        factor = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        losses: list[Tensor] = []
        precise = torch.promote_types(dtype, torch.float32)
        columns = (hidden.to(dtype), targets[:, None], shares.to(precise)[:, None])
        for chunk, wanted, share in zip(
            *(torch.split(c, rows) for c in columns), strict=True
        ):
            logits = _room(chunk, factor, rows, dtype)
            for tile in _tiles(factor):
                multiply_into(logits[:, tile], chunk, factor[tile].T)
            if offset is not None:
                logits.add_(offset)
            log_p = _room(chunk, factor, rows, precise)
            torch.log_softmax(logits, dim=-1, dtype=precise, out=log_p)
            del logits
            losses.append(share * log_p.gather(1, wanted))
            off = log_p.exp_().mul_(share).scatter_add_(1, wanted, -share)
            gradients.add(off, chunk, factor)
        ctx.gradients = gradients.of(hidden, weight, bias)
        return -torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = gradients = ctx.gradients
        # Nobody else may hold a gradient that becomes the parameter's own.
        del ctx.gradients
        if not ctx.is_root:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad)
        if ctx.tied is not None:
            ctx.tied.of_head, weight = weight, None
        return (hidden, weight, bias, None, None, None, None, None)


def _tiles(weight: Tensor) -> Iterator[slice]:
    step = _TILE if weight.device.type == "cpu" else len(weight)
    return (slice(start, start + step) for start in range(0, len(weight), step))


def _room(hidden: Tensor, weight: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """``[T, V]``, with room for a slightly longer text, so that the next text fits there too."""
    rounded = -(-len(hidden) // _ROUNDED) * _ROUNDED
    return hidden.new_empty(min(rounded, rows), len(weight), dtype=dtype)[: len(hidden)]


class _Gradients:
    """Sums the gradients of hidden states, weight and bias over chunks, if they are needed."""

    def __init__(self, needed: tuple[bool, ...]) -> None:
        self._needs_hidden, self._needs_weight, self._needs_bias = needed[:3]
        self._hidden: list[Tensor] = []
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def add(self, off: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """``off`` [rows, V] is the gradient of a chunk's logits."""
        if self._needs_bias:
            self._bias = off.sum(0) if self._bias is None else self._bias + off.sum(0)
        factor = off.to(hidden.dtype)
        if self._needs_hidden:
            self._hidden.append(multiply(factor, weight))
        if not self._needs_weight:
            return
        first = self._weight is None
        if self._weight is None:
            # Later chunks add to it, so it has the precision of the sum.
            self._weight = off.new_empty(weight.shape)
        for tile in _tiles(weight):
            multiply_into(self._weight[tile], factor[:, tile].T, hidden, add=not first)

    def of(self, *tensors: Tensor | None) -> list[Tensor | None]:
        """The gradients of hidden states, weight and bias, in their dtypes."""
        hidden = torch.cat(self._hidden) if self._hidden else None
        sums = (hidden, self._weight, self._bias)
        return [
            None if total is None or tensor is None else total.to(tensor.dtype)
            for total, tensor in zip(sums, tensors, strict=True)
        ]
