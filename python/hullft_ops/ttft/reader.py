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
from hullft_ops.ttft.loss import next_token_logits
from hullft_ops.ttft.models.checks import (
    check_causal,
    model_identity,
    text_window,
    unwrapped,
)
from hullft_ops.ttft.models.modes import AutoPrecision, ThreadModes, autocast, eval_mode
from hullft_ops.ttft.prefix import Prefix, cache_keyword, keeps_keys_and_values
from hullft_ops.ttft.restore import exclusive
from hullft_ops.ttft.signals import at_exit, signal_safe
from hullft_ops.ttft.tokens import Tokens, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A small model reads so many in about a second on one core.
_TOKENS_AT_ONCE = 512
# With other arguments, beams for example, transformers may refuse a cache that it did not make.
_TAKE_A_CACHE = {
    "do_sample",
    "logits_processor",
    "max_new_tokens",
    "num_return_sequences",
    "repetition_penalty",
    "return_dict_in_generate",
    "stop_strings",
    "stopping_criteria",
    "streamer",
    "temperature",
    "tokenizer",
    "top_k",
    "top_p",
}


class Reader:
    """A causal language model and its tokenizer, checked once.

    Args:
        model: the model, or a PEFT model around one.
        tokenizer: its tokenizer.
        max_length: tokens that the model reads at once, new ones included; None for its window.
        dtype: as in `TTFTConfig`; None for the model's own.

    Attributes:
        window: how many tokens it reads at once.

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
        self._keyword = cache_keyword(model)
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
    def takes_padding(self) -> bool:
        """Whether the model keeps keys and values alone, in which padding can be masked."""
        return self._cache_of(self.tokens("a").ids) is not None

    def prefill(self, prefix: Prefix, opening: Sequence[int]) -> Prefix:
        """Read the passages of a prefix, behind the tokens that open a text."""
        ids = [*opening, *chain.from_iterable(each.ids for each in prefix.passages)]
        cache = None
        # The cache leaves the last token out: its logits predict the first of the text.
        if prefix.passages and len(ids) > 1:
            cache = self._cache_of(ids[:-1])
        arguments = None if cache is None else {self._keyword: cache}
        return replace(prefix, ids=ids, cache=arguments)

    def _cache_of(self, ids: Sequence[int]) -> Any:
        """The model's cache of the tokens; None if it keeps more than keys and values."""
        tokens = torch.tensor([list(ids)], device=self.model.device)
        arguments: dict[str, Any] = {"use_cache": True}
        # The logits of long passages would take more memory than their cache.
        forward = inspect.signature(unwrapped(self.model).forward)
        if "logits_to_keep" in forward.parameters:
            arguments["logits_to_keep"] = 1
        cache: Any = None
        starts = range(0, len(ids), _TOKENS_AT_ONCE)
        with self.reading():
            for start in progress(starts, desc="reading passages", unit="part"):
                part = tokens[:, start : start + _TOKENS_AT_ONCE]
                output = self.model(input_ids=part, **arguments)
                cache = getattr(output, self._keyword, None)
                if not keeps_keys_and_values(cache):
                    return None
                arguments[self._keyword] = cache
        return cache if cache.get_seq_length() == len(ids) else None

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

    def generate(
        self,
        rows: Sequence[Sequence[int]],
        prefixes: Sequence[Prefix],
        **options: Any,
    ) -> list[str]:
        """What the model writes after each row of tokens, without special tokens.

        ``options`` are those of ``model.generate``. A row alone uses what its prefix has read.
        """
        config: Any = self.model.generation_config
        has_beams = (config.num_beams or 1) > 1
        takes_cache = options.keys() <= _TAKE_A_CACHE and not has_beams
        if len(rows) == 1 and takes_cache and config.cache_implementation is None:
            options |= prefixes[0].arguments(rows[0])
        length = max(map(len, rows))
        # Masked, so any token would do. With a row's own, a penalty of repetition stays the same.
        padded = [[row[0]] * (length - len(row)) + list(row) for row in rows]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        if self.tokenizer.pad_token_id is None:
            options.setdefault("pad_token_id", self.tokenizer.eos_token_id)
        if options.get("stop_strings"):
            options.setdefault("tokenizer", self.tokenizer)
        generate: Any = self.model.generate
        device = self.model.device
        with self.reading():
            output = generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                **options,
            )
        texts = []
        for row, written in zip(rows, output.tolist(), strict=True):
            # Decoders of SentencePiece take the space from the beginning of what they decode.
            whole = [*row, *written[length:]]
            before, text = self.tokenizer.batch_decode(
                [list(row), whole], skip_special_tokens=True
            )
            texts.append(text[len(before) :])
        return texts
