"""The loss of a causal language model on one text, and its backward pass in parts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.module import _has_any_global_hook

from hullft_ops.ttft.model.attention import no_padding_check, unmasked, without_marks
from hullft_ops.ttft.model.context import unwrapped
from hullft_ops.ttft.model.head_loss import TiedGradient, linear_mean_loss
from hullft_ops.ttft.model.memory import is_out_of_memory
from hullft_ops.ttft.model.patches import is_replaced_here, replaced_forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# At most this many bytes of float32 logits exist at once: a few hundred positions. With fewer, the
# products of a chunk are too small to be fast.
_CHUNK_BYTES = 64 * 2**20
# Enough to show a head that does more than multiply.
_PROBE_TOKENS = 16
# A base model raises one of these if it cannot be called alone.
_NOT_CALLED_ALONE = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Take = Callable[[dict[torch.Tensor, torch.Tensor]], None]
# How much is handed over at once: a share of all gradients in bytes, and at least so many bytes.
# The call of a step on one small parameter may cost more than its work.
_SHARE = 1 / 16
_LEAST_BYTES = 8 * 2**20


def next_token_losses(
    model: "PreTrainedModel", tokens: torch.Tensor, **cached: Any
) -> torch.Tensor:
    """The negative log-likelihood in nats of every token but the first, given the tokens before.

    Tokens are int64 ``[T]``, T at least 2, within the context. The losses are ``[T - 1]``, float64
    for a float64 model and float32 for all others. ``cached`` has arguments that give the model a
    cache of the tokens before.
    """
    logits = model(input_ids=tokens[None], **{"use_cache": False} | cached).logits[0]
    return _losses_of(logits, tokens)


def _losses_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(precise[:-1], tokens[1:], reduction="none")


class MeanLoss:
    """The mean of `next_token_losses`, to train on, chunk by chunk from the hidden states.

    It stores a text's full logits only if the head is no plain linear layer, or does not give the
    model's own logits, bit for bit, on the first text. ``is_full`` says whether the last loss did.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.is_full = False
        self._model = model
        # The base model and the head that were compared, and with which arguments they gave the
        # model's logits, if any did.
        self._compared: tuple[nn.Module, ...] = ()
        self._arguments: dict[str, Any] | None = None

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """A scalar, in nats; tokens int64 ``[T]``, T at least 2, within the model's context."""
        return self.of_rows(tokens[None], [len(tokens)])[0]

    def of_padded(self, text: torch.Tensor) -> torch.Tensor:
        """The loss of a text that `attention.padded` has padded, without its padding."""
        tokens, shares = without_marks(text)
        return self.of_rows(tokens[None], [len(tokens)], shares)[0]

    def of_rows(
        self,
        rows: torch.Tensor,
        lengths: Sequence[int],
        shares: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """The loss of each text of a batch, int64 ``[R, T]``, with so many tokens in each row.

        What stands behind a text does not count: the model is causal.
        """
        split = _SplitModel.of(self._model)
        if split is not None:
            arguments = self._agreeing(split, rows[:, :_PROBE_TOKENS])
            if arguments is not None:
                self.is_full = False
                return split.mean_losses(rows, lengths, arguments, shares)
        self.is_full = True
        logits = self._model(input_ids=rows, use_cache=False).logits.unbind()
        texts = zip(logits, rows, lengths, strict=True)
        each = (
            _losses_of(found[:length], row[:length]) for found, row, length in texts
        )
        return [
            o.mean() if shares is None else (o * shares.to(o.dtype)).sum() for o in each
        ]

    @torch.no_grad()
    def _agreeing(
        self, split: "_SplitModel", probe: torch.Tensor
    ) -> dict[str, Any] | None:
        """Arguments for `_SplitModel.hidden` that give the model's own logits; None if none do."""
        if self._compared == (split.base, split.head):
            return self._arguments
        wanted = self._model(input_ids=probe, use_cache=False).logits
        # NaN equals nothing, so a later text has to decide.
        if not wanted.isfinite().all():
            return None
        self._arguments = None
        for make in (partial(unmasked, split.base), dict[str, Any]):
            try:
                arguments = make()
                if torch.equal(split.head(split.hidden(probe, arguments)), wanted):
                    self._arguments = arguments
                    break
            except _NOT_CALLED_ALONE as error:
                if is_out_of_memory(error):
                    raise
        self._compared = split.base, split.head
        return self._arguments


@dataclass(frozen=True)
class _SplitModel:
    """A causal language model as hidden states and a linear head.

    ``embedding`` has the head's weight, and trains it in the head's gradient.
    """

    base: nn.Module
    head: nn.Linear
    embedding: nn.Embedding | None

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "_SplitModel | None":
        """None if the head does more than multiply, or somebody listens to a bypassed module."""
        inner = unwrapped(model)
        base: nn.Module = inner.base_model
        head: nn.Module | None = inner.get_output_embeddings()  # type: ignore[no-untyped-call]
        # A subclass, such as an adapter or a quantized layer, is more than its weight.
        if base is inner or type(head) is not nn.Linear:
            return None
        # A cap changes small logits by less than a low-precision model can show.
        if (
            getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
            is not None
        ):
            return None
        if are_wrapped((*_ancestors(model, base), head)):
            return None
        modules = list(inner.modules())
        # Code that was compiled for the embedding would be compiled for every pass again.
        compiled = any(module._compiled_call_impl is not None for module in modules)
        embeddings = (
            m for m in modules if type(m) is nn.Embedding and m.weight is head.weight
        )
        embedding = None if compiled else next(filter(_can_be_tied, embeddings), None)
        return cls(base, head, embedding)

    def hidden(self, rows: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        with no_padding_check(self.base):
            read = self.base(input_ids=rows, use_cache=False, **arguments)
        hidden: torch.Tensor = read.last_hidden_state
        return hidden

    def mean_losses(
        self,
        rows: torch.Tensor,
        lengths: Sequence[int],
        arguments: dict[str, Any],
        shares: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        weight, bias, tied = self.head.weight, self.head.bias, TiedGradient()
        chunk = max(_CHUNK_BYTES // (4 * weight.shape[0]), 1)
        # Each row's head would have a gradient of its own to add the embedding's to.
        if self.embedding is None or len(rows) > 1:
            hidden = self.hidden(rows, arguments)
        else:
            with replaced_forwards(self.embedding, {nn.Embedding: tied.embed}):
                hidden = self.hidden(rows, arguments)
        # A model that does not call its embedding computes the two gradients apart.
        shared = tied if tied.is_read else None
        return [
            linear_mean_loss(
                found[: length - 1], weight, bias, row[1:length], chunk, shares, shared
            )
            for found, row, length in zip(hidden.unbind(), rows, lengths, strict=True)
        ]


def _can_be_tied(embedding: nn.Embedding) -> bool:
    """Whether its gradient is that of plain rows, which can be added to the head's."""
    plain = (
        not (embedding.sparse or embedding.scale_grad_by_freq)
        and embedding.max_norm is None
    )
    return plain and embedding.weight.requires_grad and "forward" not in vars(embedding)


def _ancestors(model: nn.Module, descendant: nn.Module) -> Iterator[nn.Module]:
    name = next(name for name, module in model.named_modules() if module is descendant)
    parts = name.split(".")
    return (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts)))


def are_wrapped(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody listens to the forward of any of these modules, or has replaced it."""
    heard: bool = bool(_has_any_global_hook())  # type: ignore[no-untyped-call]
    return heard or any(map(_is_wrapped, modules))


def _is_wrapped(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or ("forward" in vars(module) and not is_replaced_here(module))
    )


def backward_in_parts(
    loss: torch.Tensor, parameters: Sequence[torch.Tensor], take: Take
) -> None:
    """Hand complete gradients to ``take`` during the pass, several at a time, and drop them.

    ``take`` may change their parameters: whatever multiplies by one on the way back contributes to
    its gradient, and is done by then. RuntimeError if autograd notices another use, or a gradient
    comes in pieces, as of reentrant checkpoints that share the parameter.
    """
    gradients = _Gradients(parameters, take)
    try:
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(gradients.is_whole)  # type: ignore[no-untyped-call]
        torch.autograd.backward(loss)
    finally:
        stop_listening(parameters)
    gradients.hand_over(parameters)


def stop_listening(parameters: Sequence[torch.Tensor]) -> None:
    """Take off the hooks of `backward_in_parts`, also those that an interrupt left behind."""
    for parameter in parameters:
        hooks = parameter._post_accumulate_grad_hooks or {}
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), _Gradients):
                del hooks[key]


class _Gradients:
    def __init__(self, parameters: Sequence[torch.Tensor], take: Take) -> None:
        self._take = take
        self._enough = max(_SHARE * sum(p.nbytes for p in parameters), _LEAST_BYTES)
        self._whole: list[torch.Tensor] = []
        self._bytes = 0
        self._taken: set[torch.Tensor] = set()

    def is_whole(self, parameter: torch.Tensor) -> None:
        if parameter in self._taken:
            raise RuntimeError(
                f"the backward pass makes the gradient of a parameter {list(parameter.shape)} in "
                "pieces, and a step was taken with the first: max_grad_norm=math.inf makes all "
                "gradients before the first step"
            )
        self._whole.append(parameter)
        self._bytes += parameter.nbytes
        if self._bytes >= self._enough:
            whole, self._whole, self._bytes = self._whole, [], 0
            self.hand_over(whole)

    def hand_over(self, parameters: Sequence[torch.Tensor]) -> None:
        gradients = {p: p.grad for p in parameters if p.grad is not None}
        for parameter in gradients:
            parameter.grad = None
        if gradients:
            self._taken.update(gradients)
            self._take(gradients)
