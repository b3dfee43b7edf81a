"""A prompt as the model reads it: its tokens, and where the cursor stands in them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Question:
    """A prompt, understood. What the model writes stands at the cursor.

    Attributes:
        text: what to search for: the text before the cursor, or the user's last message.
        ids: all tokens, without retrieved passages.
        opening: how many of the first stand before retrieved passages.
        start: where the text before the cursor begins in ``ids``, behind marks.
        cursor: where it ends; ``len(ids)`` without a suffix.
        suffix: the text behind the cursor.
        suffix_start: where its tokens begin in ``ids``.
        suffix_end: where they end.
    """

    text: str
    ids: Sequence[int]
    opening: int
    start: int
    cursor: int
    suffix: str = ""
    suffix_start: int = 0
    suffix_end: int = 0

    @cached_property
    def before_cursor(self) -> Tensor:
        """The tokens of the text before the cursor, ``[T]``, which what is written continues."""
        return torch.tensor(self.ids[self.start : self.cursor], dtype=torch.long)

    def behind_opening(self) -> "Question":
        """What stands behind retrieved passages."""
        return self._without(0, self.opening)

    def fitted(self, room: int) -> "Question":
        """The question in at most ``room`` tokens: without the end of the suffix, and then without
        the beginning of the text before the cursor. Marks stay."""
        excess = max(0, len(self.ids) - room)
        size = min(excess, self.suffix_end - self.suffix_start)
        fitted = self._without(self.suffix_end - size, self.suffix_end)
        # Without a suffix, what opens the text goes first.
        begin = fitted.start if self.suffix else 0
        return fitted._without(begin, begin + excess - size)

    def without_end(self, count: int) -> "Question":
        """The question without the last ``count`` tokens before the cursor."""
        return self._without(self.cursor - count, self.cursor)

    def _without(self, begin: int, end: int) -> "Question":
        """The question without the tokens from ``begin`` to ``end``."""

        def moved(place: int) -> int:
            return place - max(0, min(place, end) - begin)

        return replace(
            self,
            ids=[*self.ids[:begin], *self.ids[end:]],
            opening=moved(self.opening),
            start=moved(self.start),
            cursor=moved(self.cursor),
            suffix_start=moved(self.suffix_start),
            suffix_end=moved(self.suffix_end),
        )


@dataclass(frozen=True)
class Row:
    """What the model continues.

    Attributes:
        head: the tokens that open the text, and the retrieved passages; empty without passages.
        question: what stands behind them.
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

    def without_end(self, count: int) -> "Row":
        """The row without the last ``count`` tokens before the cursor."""
        return replace(self, question=self.question.without_end(count))
