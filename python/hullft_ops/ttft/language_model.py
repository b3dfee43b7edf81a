"""A language model with its tokenizer: it reads what stands before a text, and predicts."""

import inspect
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hullft_ops.ttft.healing import Vocabulary
from hullft_ops.ttft.loss import next_token_logits
from hullft_ops.ttft.models.cache import (
    cache_argument,
    can_be_cut,
    copied,
    keeps_keys_and_values,
)
from hullft_ops.ttft.models.checks import (
    agree,
    check_causal,
    model_identity,
    text_window,
)
from hullft_ops.ttft.models.precision import AutoPrecision, reading
from hullft_ops.ttft.question import Question, Row
from hullft_ops.ttft.restore import unwrapped
from hullft_ops.ttft.tokens import PROBE, Tokens, count_shared, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A small model reads so many in about a second on one core.
TOKENS_AT_ONCE = 512


@dataclass(frozen=True)
class Passage:
    """A retrieved passage, with those that follow it, as it stands before a prompt.

    Attributes:
        text: its text.
        ids: the tokens of the text.
        positions: of the passages in the datastore.
    """

    text: str
    ids: Sequence[int]
    positions: Sequence[int] = ()


@dataclass(frozen=True)
class Prediction:
    """What the model says of the next token.

    Attributes:
        logits: ``[vocabulary]``.
        hidden: ``[d]``, the last hidden state: the input of the output embeddings. None where
            nobody sees it: in a compiled model, and where transformers makes more passes than one
            for a token, with an assistant or with guidance.
    """

    logits: Tensor
    hidden: Tensor | None


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next, for one pass of the model to verify.

    Attributes:
        tokens: the tokens.
        kind: drafts of a kind are accepted equally often.
        rate: how often a token of this kind stands, as far as is known before any was verified.
    """

    tokens: Sequence[int] = ()
    kind: Hashable = None
    rate: float = 0.0


@runtime_checkable
class Mixture(Protocol):
    """Changes a model's predictions of what follows the text before a question's cursor.

    ``written`` is what has followed so far, tokens ``[T]`` on the model's device.
    """

    def mixed(
        self, question: Question, written: Tensor, prediction: Prediction, /
    ) -> Tensor:
        """The logits to use in place of a prediction's, ``[vocabulary]``."""

    def draft(self, question: Question, written: Tensor, length: int, /) -> Draft:
        """Up to ``length`` tokens that may come next."""

    def while_writing(self) -> "Mixture":
        """The mixture to use while the model writes."""


def mixed_logits(
    mixtures: Sequence[Mixture],
    question: Question,
    written: Tensor,
    prediction: Prediction,
) -> Tensor:
    """The logits of a prediction that mixtures change, one after the other."""
    for mixture in mixtures:
        logits = mixture.mixed(question, written, prediction)
        prediction = replace(prediction, logits=logits)
    return prediction.logits


@dataclass(frozen=True)
class Prefix:
    """What was prepared for a prompt, and as much of it as the model has read.

    Attributes:
        passages: stand before texts, nearest last.
        mixtures: change the predictions, one after the other.
        ids: the tokens that the model has read: what opens a text, the passages, or more.
        cache: holds ``ids`` without the last; None if there is none, and they are read again before
            each text.
    """

    passages: Sequence[Passage] = ()
    mixtures: Sequence[Mixture] = ()
    ids: Sequence[int] = ()
    cache: Any = None

    def before(self, ids: Sequence[int], opening: int, window: int) -> list[int]:
        """What stands before the text of ``ids``: its first ``opening`` tokens, and the passages.

        Empty if no passage fits.
        """
        passages = nearest_that_fit(
            self.passages, room_before(len(ids), opening, window)
        )
        behind = chain.from_iterable(passage.ids for passage in passages)
        return [*ids[:opening], *behind] if passages else []

    def row(self, question: Question, room: int) -> Row:
        """A question behind the passages, in at most ``room`` tokens."""
        head = self.before(question.ids, question.opening, room)
        if head:
            question = question.behind_opening()
        room -= len(head)
        if len(question.ids) > room:
            warnings.warn(
                f"the prompt has {len(question.ids)} tokens: the model reads the last {room}",
                stacklevel=2,
            )
        return Row(head, question.fitted(room))

    def fitting(self, question: Question, window: int) -> "Prefix":
        """The prefix with the passages that fit before a question. Warns if not all do."""
        room = room_before(len(question.ids), question.opening, window)
        passages = nearest_that_fit(self.passages, room)
        if len(passages) < len(self.passages):
            warnings.warn(
                f"there is room for {len(passages)} of {len(self.passages)} retrieved passages "
                f"before the prompt: the model reads {window} tokens",
                stacklevel=2,
            )
        return replace(self, passages=passages)

    def count_read(self, ids: Sequence[int]) -> int:
        """How many of the first of ``ids`` the cache holds, but not the last, which predicts."""
        if self.cache is None:
            return 0
        return count_shared(self.ids[:-1], ids[:-1])

    def cache_before(self, ids: Sequence[int]) -> Any:
        """A copy of the cache, cut to what it holds of ``ids``; None if that is nothing, or it
        cannot be cut."""
        count = self.count_read(ids)
        if not count:
            return None
        cache = copied(self.cache)
        excess = len(self.ids) - 1 - count
        if excess and not can_be_cut(cache):
            return None
        if excess:
            cache.crop(-excess)
        return cache


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
        """Read the passages of a prefix, behind the tokens that open a text."""
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
        """The model's output on the next tokens of padded rows ``[B, T]``, behind a cache."""
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


def room_before(length: int, opening: int, window: int) -> int:
    """How many tokens may stand before ``length`` tokens, of which the first ``opening`` open.

    As many as leave room for the whole text. Before a text longer than half of the window they may
    take the other half, or a little less, because a window needs two tokens of the text.
    """
    room = max(window - length, window // 2 - opening)
    return min(room, window - opening - 2)


def nearest_that_fit(passages: Sequence[Passage], room: int) -> Sequence[Passage]:
    """Of passages, nearest last, the last ones that take at most ``room`` tokens, each whole."""
    sizes = accumulate(len(passage.ids) for passage in reversed(passages))
    count = sum(size <= room for size in sizes)
    return passages[len(passages) - count :]
