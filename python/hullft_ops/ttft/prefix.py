"""What stands before a prompt: passages, what changes predictions, and what a model has read."""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from hullft_ops.ttft.models.cache import can_be_cut, copied
from hullft_ops.ttft.question import Question
from hullft_ops.ttft.tokens import count_shared


@dataclass(frozen=True)
class Passage:
    """A retrieved passage and the next ones of its document, as they stand before a prompt.

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
class TokenRow:
    """What the model continues: one row of a batch.

    Attributes:
        head: the tokens that open the text, and the retrieved passages; empty without passages.
        question: what stands after them.
    """

    head: Sequence[int]
    question: Question

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return [*self.head, *self.question.ids]

    @property
    def before_cursor(self) -> list[int]:
        """The tokens up to the cursor."""
        return [*self.head, *self.question.ids[: self.question.cursor]]

    def without_end(self, count: int) -> "TokenRow":
        """The row without the last ``count`` tokens before the cursor."""
        return replace(self, question=self.question.without_end(count))


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

    def head_of(self, ids: Sequence[int], opening: int, window: int) -> list[int]:
        """What stands before the text of ``ids``: its first ``opening`` tokens, and the passages.

        Empty if no passage fits.
        """
        passages = nearest_that_fit(
            self.passages, room_before(len(ids), opening, window)
        )
        behind = chain.from_iterable(passage.ids for passage in passages)
        return [*ids[:opening], *behind] if passages else []

    def row(self, question: Question, room: int) -> TokenRow:
        """A question after the passages, in at most ``room`` tokens."""
        head = self.head_of(question.ids, question.opening, room)
        if head:
            question = question.behind_opening()
        room -= len(head)
        if len(question.ids) > room:
            warnings.warn(
                f"the prompt has {len(question.ids)} tokens: the model reads the last {room}",
                stacklevel=2,
            )
        return TokenRow(head, question.fitted(room))

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
