"""A language model with its tokenizer: it reads what stands before a text, and predicts."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hullft_ops.ttft.healing import Vocabulary
from hullft_ops.ttft.loss import next_token_logits
from hullft_ops.ttft.models.cache import (
    cache_argument,
    keeps_keys_and_values,
)
from hullft_ops.ttft.models.checks import (
    agree,
    check_causal,
    model_identity,
    text_window,
)
from hullft_ops.ttft.models.precision import AutoPrecision, reading
from hullft_ops.ttft.prefix import Prefix
from hullft_ops.ttft.restore import unwrapped
from hullft_ops.ttft.tokens import PROBE, Tokens, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A small model reads so many in about a second on one core.
TOKENS_AT_ONCE = 512


class LanguageModel:
    """A causal language model and its tokenizer, checked once.

    Args:
        model: the model, or a PEFT model around one.
        tokenizer: its tokenizer.
        window: tokens that the model reads at once, new ones included; None for all that it can.
        dtype: as in `TTFTConfig`; None for the model's own.

    Attributes:
        window: how many tokens it reads at once.
        cache_argument: what the model's forward calls a cache.

    Raises:
        ValueError: the model is not causal, or lacks ids of the tokenizer; or ``window`` is out of
            range.
        RuntimeError: the model is in use elsewhere.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        window: int | None = None,
        dtype: AutoPrecision | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.dtype = dtype
        check_causal(model, tokenizer)
        self.window = text_window(model, tokenizer, window)
        self.cache_argument = cache_argument(model)

    def using(self, window: int, dtype: AutoPrecision | None) -> "LanguageModel":
        """The same model with another window and dtype. Nothing is checked again."""
        other = copy(self)
        other.window, other.dtype = window, dtype
        return other

    @cached_property
    def model_identity(self) -> str:
        """The identity of the weights when it is first asked for; see `model_identity`."""
        return model_identity(self.model)

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text."""
        return tokenized(self.tokenizer, text)

    def passage_ids(self, text: str, *, with_special: bool = False) -> list[int]:
        """The tokens of a passage, ``with_special`` ones or without."""
        # Truncation is a state of the tokenizer, which another thread may be using.
        encoding = self.tokenizer(text, add_special_tokens=with_special, verbose=False)
        return list(encoding["input_ids"])

    def reading(self) -> AbstractContextManager[None]:
        """Keep others from the model in the body. It is in eval mode, without gradients.

        RuntimeError if it is in use elsewhere.
        """
        return reading(self.model, self.dtype)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of the tokens."""
        return Vocabulary(self.tokenizer)

    @cached_property
    def keeps_cache(self) -> bool:
        """Whether the model keeps keys and values alone."""
        with self.reading():
            return self.read(torch.tensor([self.tokens("a").ids])) is not None

    @cached_property
    def takes_padding(self) -> bool:
        """Whether padding changes no prediction: some models mask it, but count its positions."""
        ids = self.tokens(PROBE).ids[: self.window // 2]
        text = torch.tensor([ids], device=self.model.device)
        padded = text.repeat(1, 2)
        mask = torch.ones_like(padded)
        mask[:, : len(ids)] = 0
        # Autocast would round off what a position changes.
        with self.using(self.window, None).reading():
            cache = self.read(padded[:, :-1], mask[:, :-1])
            if cache is None:
                return False
            output = self._pass(padded, mask, cache.get_seq_length(), cache)
            alone = self.model(input_ids=text, use_cache=False)
            # In bfloat16, other kernels change a deep model's logits by several roundings.
            return agree(output.logits, alone.logits[:, -1:], roundings=16)

    def prefill(self, prefix: Prefix, opening: Sequence[int]) -> Prefix:
        """Read the passages of a prefix, after the tokens that open a text."""
        ids = [*opening, *chain.from_iterable(each.ids for each in prefix.passages)]
        if not prefix.passages:
            return replace(prefix, ids=ids, cache=None)
        return self.read_on(prefix, ids)

    def read_on(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Read these tokens, but what the prefix has read of their beginning."""
        # The cache leaves the last token out: its logits predict the next.
        with self.reading():
            cache = self.read(torch.tensor([ids[:-1]]), cache=prefix.cache_before(ids))
        return replace(prefix, ids=ids, cache=cache)

    def read(
        self, ids: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Any:
        """The model's cache of rows of tokens ``[B, T]``. Call it in `reading`.

        Args:
            ids: the rows.
            attention_mask: ``[B, T]``, 0 where a row is padded; None if none is.
            cache: of the rows' first tokens, or of more, which grows; None for none.

        Returns:
            None if there is no token, or the model keeps more than keys and values.
        """
        ids = ids.to(self.model.device)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        first = 0 if cache is None else cache.get_seq_length()
        for start in range(first, ids.shape[1], TOKENS_AT_ONCE):
            output = self._pass(ids, mask, start, cache)
            cache = getattr(output, self.cache_argument, None)
            if not keeps_keys_and_values(cache):
                return None
        is_read = cache is not None and cache.get_seq_length() >= ids.shape[1]
        return cache if is_read else None

    def _pass(self, ids: Tensor, mask: Tensor, start: int, cache: Any) -> Any:
        """The model's output on the next tokens of padded rows ``[B, T]``, after a cache."""
        parameters = inspect.signature(unwrapped(self.model).forward).parameters
        arguments: dict[str, Any] = {"use_cache": True}
        # The logits of long passages would take more memory than their cache.
        if "logits_to_keep" in parameters:
            arguments["logits_to_keep"] = 1
        if cache is not None:
            arguments[self.cache_argument] = cache
        end = min(start + TOKENS_AT_ONCE, ids.shape[1])
        if not mask.all():
            arguments["attention_mask"] = mask[:, :end]
            if "position_ids" in parameters:
                positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
                arguments["position_ids"] = positions[:, start:end]
        return self.model(input_ids=ids[:, start:end], **arguments)

    def logits(
        self,
        head: Sequence[int],
        body: Sequence[int],
        first: int,
        prefix: Prefix,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What predicts the tokens of ``body`` from ``first`` on, as `next_token_logits`.

        Call it in `reading`. ``head`` stands before the body; what the prefix has read of it is not
        read again.
        """
        cache = prefix.cache_before(head)
        before = head[0 if cache is None else cache.get_seq_length() :]
        arguments = (
            {} if cache is None else {self.cache_argument: cache, "use_cache": True}
        )
        ids = torch.tensor([*before, *body], device=self.model.device)
        return next_token_logits(self.model, ids, len(before) + first, **arguments)
