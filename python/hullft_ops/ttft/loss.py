"""The loss of a causal language model on a text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from hullft_ops.ttft.restore import unwrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# At most this many bytes of float32 logits exist at once: a few hundred positions. With fewer, the
# products of a chunk are too small to be fast.
_CHUNK_BYTES = 64 * 2**20
# Enough to show a head that does more than multiply.
_COMPARED_TOKENS = 16
# A CPU multiplies this many rows of the head's weight at once. On a whole vocabulary MKL reaches
# little more than half of its speed.
_TILE = 1024


class NonFiniteLossError(RuntimeError):
    """A loss was not finite, for example because the learning rate is too high."""


def next_token_logits(
    model: "PreTrainedModel", tokens: Tensor, first: int = 1, **cache: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits that predict a text's tokens from ``first`` on, and these tokens, in chunks.

    Args:
        model: a causal language model.
        tokens: int64 ``[T]``, T above ``first``, within the model's window.
        first: at least 1.
        cache: arguments that give the model a cache of earlier tokens.

    Yields:
        Logits ``[rows, vocabulary]``, float64 for a float64 model and float32 for all others, and
        int64 ``[rows]``.
    """
    arguments = {"use_cache": False} | cache
    logits = model(input_ids=tokens[None], **arguments).logits[0]
    precision = torch.promote_types(logits.dtype, torch.float32)
    rows = _rows_at_once(logits.shape[1])
    # The log-probabilities of all positions would take as much memory as the logits.
    chunks = torch.split(logits[first - 1 : -1], rows)
    for chunk, targets in zip(chunks, torch.split(tokens[first:], rows), strict=True):
        yield chunk.to(precision), targets


def next_token_losses(model: "PreTrainedModel", tokens: Tensor) -> Tensor:
    """The negative log-likelihood in nats of every token but the first, ``[T - 1]``."""
    losses = [
        cross_entropy(logits, targets, reduction="none")
        for logits, targets in next_token_logits(model, tokens)
    ]
    return torch.cat(losses)


class MeanLoss:
    """The mean of `next_token_losses`, to train layers on, chunk by chunk from the hidden states.

    It computes a text's full logits, which take more memory, only if the head is trained, or if
    hidden states times the head's weight are not the model's logits, bit for bit, on the first
    text. ``is_full`` says whether the last loss did.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.is_full = False
        self._model = model
        # Base and head that were compared with the model, and whether they agree with it.
        self._compared: tuple[nn.Module, nn.Module | None] | None = None
        self._agrees = False

    def __call__(self, tokens: Tensor) -> Tensor:
        """A scalar, in nats; tokens int64 ``[T]``, T at least 2, within the model's window."""
        inner = unwrapped(self._model)
        base: nn.Module = inner.base_model
        head: Any = inner.get_output_embeddings()  # type: ignore[no-untyped-call]
        if (base, head) != self._compared:
            self._compare(base, head, tokens[:_COMPARED_TOKENS])
        self.is_full = not self._agrees or head.weight.requires_grad
        if self.is_full:
            return next_token_losses(self._model, tokens).mean()
        hidden = _hidden_states(base, head, tokens)[:-1]
        rows = _rows_at_once(len(head.weight))
        return head_loss(hidden, head.weight, head.bias, tokens[1:], rows)

    @torch.no_grad()
    def _compare(self, base: nn.Module, head: Any, tokens: Tensor) -> None:
        """See whether the parts give the model's own logits."""
        self._agrees = False
        logits = self._model(input_ids=tokens[None], use_cache=False).logits[0]
        # NaN equals nothing, so a later text has to decide.
        if not logits.isfinite().all():
            return
        self._compared = base, head
        # A subclass, such as an adapter or a quantized layer, is more than its weight. A cap
        # changes small logits by less than a low-precision model can show.
        config = self._model.config.get_text_config()
        is_capped = getattr(config, "final_logit_softcapping", None) is not None
        is_linear = type(head) is nn.Linear and base is not unwrapped(self._model)
        if is_linear and not is_capped:
            hidden = _hidden_states(base, head, tokens)
            product = linear(hidden, head.weight, head.bias)
            self._agrees = torch.equal(product, logits)


def _hidden_states(base: nn.Module, head: nn.Linear, tokens: Tensor) -> Tensor:
    """The last ones, ``[T, d]``, of tokens ``[T]``, in the dtype of the head."""
    states: Tensor = base(input_ids=tokens[None], use_cache=False).last_hidden_state
    # Mamba adds up in float32.
    return states[0].to(head.weight.dtype)


def _rows_at_once(vocabulary: int) -> int:
    return max(_CHUNK_BYTES // (4 * vocabulary), 1)


def head_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int
) -> Tensor:
    """The mean cross-entropy of ``linear(hidden, weight, bias)``, ``rows`` positions at a time.

    Products are in the dtype of autocast if that is on. The gradient of ``hidden`` is computed too;
    weight and bias have none.

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
        loss: Tensor = _HeadLoss.apply(hidden, weight.to(dtype), bias, targets, rows)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
    ) -> Tensor:
        precise = torch.promote_types(weight.dtype, torch.float32)
        share = 1 / len(targets)
        losses, gradients = [], []
        for start in range(0, len(targets), rows):
            chunk = hidden[start : start + rows].to(weight.dtype)
            target = targets[start : start + rows, None]
            logits = _logits(chunk, weight, bias)
            log_p = torch.log_softmax(logits, dim=-1, dtype=precise)
            del logits
            losses.append(share * log_p.gather(1, target))
            # The gradient of the logits, in the memory of their logarithms.
            error = log_p.exp_().mul_(share)
            error.scatter_add_(1, target, error.new_full(target.shape, -share))
            gradients.append(error.to(weight.dtype) @ weight)
        ctx.gradient = torch.cat(gradients).to(hidden.dtype)
        return -torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * grad, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden.new_empty(len(hidden), len(weight))
    step = _TILE if weight.device.type == "cpu" else len(weight)
    for start in range(0, len(weight), step):
        tile = slice(start, start + step)
        torch.mm(hidden, weight[tile].T, out=logits[:, tile])
    if bias is not None:
        logits.add_(bias.to(logits.dtype))
    return logits
