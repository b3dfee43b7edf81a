"""The loss of a causal language model on a text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.module import _has_any_global_hook

from hullft_ops.ttft.head_loss import linear_mean_loss
from hullft_ops.ttft.models.checks import unwrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# At most this many bytes of float32 logits exist at once: a few hundred positions. With fewer, the
# products of a chunk are too small to be fast.
_CHUNK_BYTES = 64 * 2**20
# Enough to show a head that does more than multiply.
_COMPARED_TOKENS = 16


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
    """The mean of `next_token_losses`, to train on, chunk by chunk from the hidden states.

    It computes a text's full logits, which take more memory, only if the head is no plain linear
    layer, hooks listen to it, or head and hidden states do not give the model's logits, bit for
    bit, on the first text. ``is_full`` says whether the last loss did.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.is_full = False
        self._model = model
        self._compared: _SplitModel | None = None
        self._agrees = False

    def __call__(self, tokens: Tensor) -> Tensor:
        """A scalar, in nats; tokens int64 ``[T]``, T at least 2, within the model's window."""
        split = _SplitModel.of(self._model)
        if split is not None and self._agree(split, tokens[:_COMPARED_TOKENS]):
            self.is_full = False
            return split.mean_loss(tokens)
        self.is_full = True
        return next_token_losses(self._model, tokens).mean()

    @torch.no_grad()
    def _agree(self, split: "_SplitModel", tokens: Tensor) -> bool:
        """Whether the parts give the model's own logits. Asked once for each base and head."""
        if self._compared == split:
            return self._agrees
        logits = self._model(input_ids=tokens[None], use_cache=False).logits[0]
        # NaN equals nothing, so a later text has to decide.
        if not logits.isfinite().all():
            return False
        self._agrees = torch.equal(split.head(split.hidden(tokens)), logits)
        self._compared = split
        return self._agrees


@dataclass(frozen=True)
class _SplitModel:
    """A causal language model as hidden states and a linear head."""

    base: nn.Module
    head: nn.Linear

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "_SplitModel | None":
        """None if the head does more than multiply, or hooks listen to a bypassed module."""
        inner = unwrapped(model)
        base: nn.Module = inner.base_model
        head: nn.Module | None = inner.get_output_embeddings()  # type: ignore[no-untyped-call]
        # A subclass, such as an adapter or a quantized layer, is more than its weight.
        if base is inner or type(head) is not nn.Linear:
            return None
        # A cap changes small logits by less than a low-precision model can show.
        config = inner.config.get_text_config()
        if getattr(config, "final_logit_softcapping", None) is not None:
            return None
        if any(_is_observed(module) for module in (*_ancestors(model, base), head)):
            return None
        return cls(base, head)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The last hidden states ``[T, d]`` of tokens ``[T]``."""
        output = self.base(input_ids=tokens[None], use_cache=False)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def mean_loss(self, tokens: Tensor) -> Tensor:
        weight, bias = self.head.weight, self.head.bias
        rows = _rows_at_once(weight.shape[0])
        hidden = self.hidden(tokens)[:-1]
        return linear_mean_loss(hidden, weight, bias, tokens[1:], rows)


def _rows_at_once(vocabulary: int) -> int:
    return max(_CHUNK_BYTES // (4 * vocabulary), 1)


def _ancestors(model: nn.Module, descendant: nn.Module) -> Iterator[nn.Module]:
    """The modules around ``descendant``, from the model inwards."""
    name = next(name for name, m in model.named_modules() if m is descendant)
    parts = name.split(".")
    for depth in range(len(parts)):
        yield model.get_submodule(".".join(parts[:depth]))


def _is_observed(module: nn.Module) -> bool:
    """Whether hooks listen to the module's forward or backward, or its forward is replaced."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    everywhere = bool(_has_any_global_hook())  # type: ignore[no-untyped-call]
    return everywhere or any(hooks) or "forward" in vars(module)
