"""A language model with its tokenizer: it reads, predicts and writes."""

import inspect
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hullft_ops._terminal import progress
from hullft_ops.ttft.healing import Vocabulary
from hullft_ops.ttft.loss import next_token_logits
from hullft_ops.ttft.models.cache import cache_keyword, keeps_keys_and_values
from hullft_ops.ttft.models.checks import (
    check_causal,
    model_identity,
    text_window,
    unwrapped,
)
from hullft_ops.ttft.models.modes import AutoPrecision, ThreadModes, autocast, eval_mode
from hullft_ops.ttft.prefix import Prefix
from hullft_ops.ttft.restore import exclusive
from hullft_ops.ttft.signals import at_exit, signal_safe
from hullft_ops.ttft.tokens import Tokens, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A small model reads so many in about a second on one core.
_TOKENS_AT_ONCE = 512


class Reader:
    """A causal language model and its tokenizer, checked once.

    Args:
        model: the model, or a PEFT model around one.
        tokenizer: its tokenizer.
        max_length: tokens that the model reads at once, new ones included; None for its window.
        dtype: as in `TTFTConfig`; None for the model's own.

    Attributes:
        window: how many tokens it reads at once.
        keyword: what the model's forward calls a cache.

    Raises:
        ValueError: the model is not causal, or lacks ids of the tokenizer; or ``max_length`` is out
            of range.
        RuntimeError: the model is in use elsewhere.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int | None = None,
        dtype: AutoPrecision | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.dtype = dtype
        with exclusive(model):
            check_causal(model, tokenizer)
        self.window = text_window(model, tokenizer, max_length)
        self.keyword = cache_keyword(model)
        self._latest = "", tokenized(tokenizer, "")

    def using(self, window: int, dtype: AutoPrecision | None) -> "Reader":
        """A reader of the same model with another window and dtype. Nothing is checked again."""
        other = copy(self)
        other.window, other.dtype = window, dtype
        return other

    @cached_property
    def model_identity(self) -> str:
        """The identity of the weights when it is first asked for; see `model_identity`."""
        return model_identity(self.model)

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text. Do not change them."""
        # A prompt is selected for, scored and continued, without adaptation and with it.
        latest, tokens = self._latest
        if latest != text:
            tokens = tokenized(self.tokenizer, text)
            self._latest = text, tokens
        return tokens

    def passage_ids(self, text: str, *, with_special: bool = False) -> list[int]:
        """The tokens of a passage, ``with_special`` ones or without."""
        # Truncation is a state of the tokenizer, which another thread may be using.
        encoding = self.tokenizer(text, add_special_tokens=with_special, verbose=False)
        return list(encoding["input_ids"])

    @signal_safe
    def reading(self) -> Iterator[None]:
        """Keep others from the model in the body. It is in eval mode, without gradients.

        RuntimeError if it is in use elsewhere.
        """
        model = self.model
        with (
            exclusive(model),
            eval_mode(model),
            at_exit(ThreadModes(model.device).put_back),
            torch.no_grad(),
            autocast(model.device, self.dtype),
        ):
            yield

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of the tokens."""
        return Vocabulary(self.tokenizer)

    @cached_property
    def takes_padding(self) -> bool:
        """Whether the model keeps keys and values alone, in which padding can be masked."""
        with self.reading():
            return self._cache_of(torch.tensor([self.tokens("a").ids])) is not None

    def prefill(self, prefix: Prefix, opening: Sequence[int]) -> Prefix:
        """Read the passages of a prefix, behind the tokens that open a text."""
        ids = [*opening, *chain.from_iterable(each.ids for each in prefix.passages)]
        cache = None
        # The cache leaves the last token out: its logits predict the first of the text.
        if prefix.passages and len(ids) > 1:
            with self.reading():
                cache = self._cache_of(torch.tensor([ids[:-1]]))
        arguments = None if cache is None else {self.keyword: cache}
        return replace(prefix, ids=ids, cache=arguments)

    def read_rows(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None
    ) -> Any:
        """A cache of all but the last token of padded rows ``[B, T]``, if it pays to read them now.

        It does if they are many, or if tokens are written in another dtype than they are read in.
        Call it in `reading`.

        Args:
            input_ids: the rows.
            attention_mask: 0 where a row is padded.
            cache: of the rows' first tokens, which grows; None for none.
        """
        unread = input_ids.shape[1] - (0 if cache is None else cache.get_seq_length())
        is_cast = torch.is_autocast_enabled(input_ids.device.type)
        if unread > _TOKENS_AT_ONCE or (is_cast and unread > 1):
            return self._cache_of(input_ids[:, :-1], attention_mask, cache)
        return cache

    def _cache_of(
        self, ids: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Any:
        """The model's cache of rows of tokens; None if it keeps more than keys and values."""
        ids = ids.to(self.model.device)
        parameters = inspect.signature(unwrapped(self.model).forward).parameters
        arguments: dict[str, Any] = {"use_cache": True}
        # The logits of long passages would take more memory than their cache.
        if "logits_to_keep" in parameters:
            arguments["logits_to_keep"] = 1
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        is_padded = not mask.all()
        first = 0 if cache is None else cache.get_seq_length()
        starts = range(first, ids.shape[1], _TOKENS_AT_ONCE)
        for start in progress(starts, desc="reading passages", unit="part"):
            end = min(start + _TOKENS_AT_ONCE, ids.shape[1])
            if cache is not None:
                arguments[self.keyword] = cache
            if is_padded:
                arguments["attention_mask"] = mask[:, :end]
            if is_padded and "position_ids" in parameters:
                positions = mask.cumsum(dim=1) - 1
                arguments["position_ids"] = positions.clamp(min=0)[:, start:end]
            output = self.model(input_ids=ids[:, start:end], **arguments)
            cache = getattr(output, self.keyword, None)
            if not keeps_keys_and_values(cache):
                return None
        return cache if cache.get_seq_length() == ids.shape[1] else None

    def logits(
        self,
        head: Sequence[int],
        body: Sequence[int],
        first: int,
        prefix: Prefix,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What predicts the tokens of ``body`` from ``first`` on, as `next_token_logits`.

        Call it in `reading`. ``head`` stands before the body; if it is what the prefix
        has read, it is not read again.
        """
        cache = prefix.arguments(head)
        before = head[-1:] if cache else head
        ids = torch.tensor([*before, *body], device=self.model.device)
        return next_token_logits(self.model, ids, len(before) + first, **cache)
