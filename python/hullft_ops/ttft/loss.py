"""The loss of a causal language model on one text."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hullft_ops.ttft.head_loss import linear_mean_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits in float32 that exist at once, at most: those of a few hundred positions. With fewer, the
# products of a chunk are too small to be fast.
_CHUNK_BYTES = 64 * 2**20
# Enough that a head which does more than multiply shows it.
_PROBE_TOKENS = 16


def next_token_losses(model: "PreTrainedModel", tokens: torch.Tensor) -> torch.Tensor:
    """The negative log-likelihood of every token but the first, in nats, given those before it.

    Args:
        model: a causal language model.
        tokens: int64 ``[T]``, T at least 2, within the model's context.

    Returns:
        ``[T - 1]``, float64 for a float64 model and float32 for all others.
    """
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(precise[:-1], tokens[1:], reduction="none")


class MeanLoss:
    """The mean of `next_token_losses`, to train on; for most models without a text's full logits.

    Hidden states come from the base model, loss and gradients of them and the head's weight are
    made chunk by chunk. That is done only if the head is a plain linear layer and gives, on the
    first text, bit for bit the logits of the model itself: a head that also scales or caps its
    logits is left to the model.

    Args:
        model: a causal language model, or a PEFT model around one.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._split = _SplitModel.of(model)
        self._compared = False

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """A scalar, in nats; tokens int64 ``[T]``, T at least 2, within the model's context."""
        if self._split is not None and self._split.serves():
            if not self._compared:
                self._compare(self._split, tokens[:_PROBE_TOKENS])
            if self._compared and self._split is not None:
                return self._split.mean_loss(tokens)
        return next_token_losses(self._model, tokens).mean()

    @torch.no_grad()
    def _compare(self, split: "_SplitModel", probe: torch.Tensor) -> None:
        wanted = self._model(input_ids=probe[None], use_cache=False).logits
        # NaN equals nothing: left for a text that can tell.
        if not wanted.isfinite().all():
            return
        self._compared = True
        try:
            logits = nn.functional.linear(split.hidden(probe), split.head.weight, split.head.bias)
        # A base model may not be made to be called alone, and says so in any way.
        except Exception:
            self._split = None
            return
        if not torch.equal(logits[0], wanted[0]):
            self._split = None


@dataclass(frozen=True)
class _SplitModel:
    """A causal language model as hidden states and a linear head.

    ``bypassed`` are the modules whose own forward is not called, the head among them.
    """

    base: nn.Module
    head: nn.Linear
    bypassed: tuple[nn.Module, ...]

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "_SplitModel | None":
        # PEFT's wrapper has a method for what lies within.
        unwrap: Callable[[], PreTrainedModel] | None = getattr(model, "get_base_model", None)
        inner = model if unwrap is None else unwrap()
        base = inner.base_model
        head: nn.Module | None = inner.get_output_embeddings()  # type: ignore[no-untyped-call]
        # A subclass, such as an adapter or a quantized layer, is more than its weight.
        if base is inner or type(head) is not nn.Linear:
            return None
        return cls(base, head, (*_ancestors(model, base), head))

    def serves(self) -> bool:
        """False where passing by a module would go unnoticed by somebody."""
        return not any(map(_is_wrapped, self.bypassed))

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.base(input_ids=tokens[None], use_cache=False).last_hidden_state
        return hidden

    def mean_loss(self, tokens: torch.Tensor) -> torch.Tensor:
        head = self.head
        rows = max(_CHUNK_BYTES // (4 * head.weight.shape[0]), 1)
        hidden = self.hidden(tokens)[0, :-1]
        return linear_mean_loss(hidden, head.weight, head.bias, tokens[1:], rows)


def _ancestors(model: nn.Module, descendant: nn.Module) -> Iterator[nn.Module]:
    name = next(name for name, module in model.named_modules() if module is descendant)
    parts = name.split(".")
    return (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts)))


def _is_wrapped(module: nn.Module) -> bool:
    """Whether somebody listens to, or has replaced, the module's forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )
