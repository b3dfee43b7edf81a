"""A prompt as the model reads it: its tokens, and where the cursor stands in them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hullft_ops._checks import check_text
from hullft_ops.ttft.chat import Conversation, chat_text, conversation
from hullft_ops.ttft.infill import Marks, marks_of
from hullft_ops.ttft.tokens import count_shared, plain_ids, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | Conversation


@dataclass(frozen=True)
class Question:
    """A prompt, understood. What the model writes stands at the cursor.

    Attributes:
        text: what to search for: the text before the cursor, or the user's last message.
        ids: all tokens, without retrieved passages.
        opening: how many of the first stand before retrieved passages.
        start: where the text before the cursor begins in ``ids``, after marks.
        cursor: where it ends; ``len(ids)`` without a suffix.
        suffix: the text after the cursor.
        suffix_start: where its tokens begin in ``ids``.
        suffix_end: where they end.
        source: the document that the text before the cursor is of, as the datastore names it; None
            if it is not known.
    """

    text: str
    ids: Sequence[int]
    opening: int
    start: int
    cursor: int
    suffix: str = ""
    suffix_start: int = 0
    suffix_end: int = 0
    source: str | None = None

    @cached_property
    def before_cursor(self) -> Tensor:
        """The tokens of the text before the cursor, ``[T]``, which what is written continues."""
        return torch.tensor(self.ids[self.start : self.cursor], dtype=torch.long)

    def behind_opening(self) -> "Question":
        """What stands after retrieved passages."""
        return self._without(0, self.opening)

    def fitted(self, room: int) -> "Question":
        """The question in at most ``room`` tokens: without the end of the suffix, which keeps a
        quarter of the room, and without the beginning of the text before the cursor. Marks
        stay."""
        excess = max(0, len(self.ids) - room)
        behind = self.suffix_end - self.suffix_start
        marks = len(self.ids) - behind - (self.cursor - self.start)
        size = min(excess, behind - min(behind, (room - marks) // 4))
        fitted = self._without(self.suffix_end - size, self.suffix_end)
        # Without a suffix, what opens the text goes first.
        begin = fitted.start if self.suffix else 0
        return fitted._without(begin, begin + excess - size)

    def with_suffix_of(self, count: int) -> "Question":
        """The question with ``count`` tokens of the suffix, if it has so many."""
        end = min(self.suffix_start + count, self.suffix_end)
        return self._without(end, self.suffix_end)

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


def question_of(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt | Question,
    *,
    suffix: str = "",
    chat: bool = False,
    source: str | None = None,
) -> Question:
    """Understand a prompt for a model of this tokenizer.

    Args:
        tokenizer: the model's.
        prompt: the text before the cursor; or a conversation, a list of messages with a "role" and
            a "content", which the tokenizer's chat template lays out. A question stays as it is.
        suffix: the text after the cursor. It stands between the tokens that the model was trained
            to fill in with; a model without them reads ``prompt`` alone, with a warning. Special
            tokens in either text are text.
        chat: whether a text is a user's message.
        source: as in `Question`, for a text that is not a message.

    Raises:
        TypeError, ValueError: the prompt is neither, or has no token; a conversation has a suffix;
            or there is no chat template, or it fails.
    """
    if isinstance(prompt, Question):
        if suffix or chat:
            raise ValueError("generate: suffix and chat are of a text, got a question")
        return prompt
    check_text("generate", "suffix", suffix)
    messages, message = conversation(prompt)
    content = message["content"]
    check_text("generate", "prompt", content)
    if isinstance(prompt, list) or chat:
        if suffix:
            raise ValueError("generate: suffix must be empty for a conversation")
        text, place = chat_text(tokenizer, messages, message)
        return _in_template(tokenizer, content, text, place)
    marks = marks_of(tokenizer) if suffix else None
    if marks is not None:
        question = _around_cursor(tokenizer, content, suffix, marks)
        return replace(question, source=source)
    if suffix:
        warnings.warn(
            "the model has no tokens to fill in with: it reads what stands before the cursor alone",
            stacklevel=2,
        )
    tokens = tokenized(tokenizer, content)
    if not tokens.ids:
        raise ValueError(f"generate: prompt must have a token, got {content[:20]!r}")
    return Question(
        content, tokens.ids, tokens.opening, 0, len(tokens.ids), source=source
    )


def _in_template(
    tokenizer: "PreTrainedTokenizerBase", content: str, text: str, place: int | None
) -> Question:
    """The text of a conversation. Passages stand at ``place``, before the message ``content``."""
    tokens = tokenized(tokenizer, text)
    opening = tokens.opening
    if place is not None:
        # The last token of the template's beginning may be merged with the message's first.
        opening = count_shared(tokenized(tokenizer, text[:place]).ids, tokens.ids)
    return Question(content, tokens.ids, opening, 0, len(tokens.ids))


def _around_cursor(
    tokenizer: "PreTrainedTokenizerBase", prefix: str, suffix: str, marks: Marks
) -> Question:
    """The texts before and after the cursor between the model's marks."""
    tokens = tokenized(tokenizer, "a")
    ids = tokens.ids[: tokens.opening]
    texts = {marks.prefix: prefix, marks.suffix: suffix}
    ends = {}
    for mark in marks.order:
        ids.append(mark)
        start = len(ids)
        text, goes_on = texts.get(mark, ""), mark == marks.suffix
        ids += plain_ids(tokenizer, text, marks.names, goes_on=goes_on)
        ends[mark] = start, len(ids)
    start, cursor = ends[marks.prefix]
    return Question(
        prefix if prefix.strip() else suffix,
        ids,
        tokens.opening,
        start,
        cursor,
        suffix,
        *ends[marks.suffix],
    )
