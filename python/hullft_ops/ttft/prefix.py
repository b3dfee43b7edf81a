"""What stands before a text, and what is mixed into the predictions of its tokens."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from hullft_ops.ttft.models.cache import copied
from hullft_ops.ttft.tokens import Tokens


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


@runtime_checkable
class Mixture(Protocol):
    """Changes a model's predictions.

    A ``text`` is its tokens so far, ``[T]``, without retrieved passages.
    """

    def mixed(self, text: Tensor, logits: Tensor, /) -> Tensor:
        """The logits to use in place of a model's for the next token, ``[vocabulary]``."""

    def draft(self, text: Tensor, length: int, /) -> tuple[list[int], int]:
        """Up to ``length`` tokens that may come next, for one pass to verify, and a kind of draft
        by which their acceptance is counted."""

    def while_writing(self) -> "Mixture":
        """The mixture to use while the model writes."""


@dataclass(frozen=True)
class Prefix:
    """What was prepared for a prompt, and as much of it as the model has read.

    Attributes:
        passages: stand before texts, nearest last.
        mixtures: change the predictions, one after the other.
        ids: the tokens that the model has read: what opens a text, and the passages.
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

    def fitting(self, tokens: Tokens, window: int) -> "Prefix":
        """The prefix with the passages that fit before these tokens. Warns if not all do."""
        room = room_before(len(tokens.ids), tokens.opening, window)
        passages = nearest_that_fit(self.passages, room)
        if len(passages) < len(self.passages):
            warnings.warn(
                f"there is room for {len(passages)} of {len(self.passages)} retrieved passages "
                f"before the prompt: the model reads {window} tokens",
                stacklevel=2,
            )
        return replace(self, passages=passages)

    def cache_before(self, ids: Sequence[int]) -> Any:
        """A copy of the cache, if ``ids`` begin with the tokens that it was made of; else None."""
        is_read = list(ids[: len(self.ids)]) == list(self.ids)
        return copied(self.cache) if is_read and self.cache is not None else None


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
