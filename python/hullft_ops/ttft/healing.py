"""Continuing a prompt from the last boundary of tokens that the model itself would make.

A prompt may end within what the model would write as one token: behind the first letters of a word,
or the first spaces of an indentation. Its last tokens are then others than those that the model has
learned to continue. They are taken back, and what is written in their place is held to their bytes.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hullft_ops.ttft.tokens import BYTE_FALLBACK, bytes_of_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Longer tokens are rulers and blank lines, which continue a prompt by chance alone.
_LONGEST = 128


class Vocabulary:
    """The bytes that the tokens of a tokenizer stand for.

    Special tokens stand for none, and so do all of a tokenizer that is neither of GPT-2's kind,
    which writes bytes, nor of SentencePiece's: its prompts are not healed.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._bytes = _bytes_of_tokens(tokenizer)
        pairs = sorted((content, token) for token, content in self._bytes.items())
        self._contents = [content for content, _ in pairs]
        self._tokens = [token for _, token in pairs]

    def __bool__(self) -> bool:
        return bool(self._bytes)

    def content(self, tokens: Sequence[int]) -> bytes:
        """The bytes of tokens, up to the first that stands for none."""
        return b"".join(self._known(tokens))

    def _known(self, tokens: Sequence[int]) -> Iterator[bytes]:
        return takewhile(bool, (self._bytes.get(token, b"") for token in tokens))

    def count_within(self, content: bytes, tokens: Sequence[int]) -> int:
        """How many of the first tokens stand for no more than these bytes."""
        # Each stands for a byte at least.
        sizes = accumulate(map(len, self._known(tokens[: len(content)])))
        return sum(size <= len(content) for size in sizes)

    def taken_back(self, tokens: Sequence[int]) -> int:
        """How many of a prompt's last tokens to take back.

        The first token stays, and so does a special one. A token must be taken back if one of the
        vocabulary begins within it, goes on as the prompt does, and ends with the prompt or later.
        """
        contents = [*self._known(tokens[: -_LONGEST - 1 : -1][: len(tokens) - 1])]
        ending = b"".join(reversed(contents))[-_LONGEST:]
        for start in range(len(ending)):
            if self._beginning_with(ending[start:]):
                size = len(ending) - start
                return 1 + sum(end < size for end in accumulate(map(len, contents)))
        return 0

    def agreeing(self, content: bytes) -> list[int]:
        """The tokens that begin with these bytes, or stand for the first of them."""
        tokens = [*self._beginning_with(content)]
        for size in range(1, len(content)):
            first = bisect_left(self._contents, content[:size])
            last = bisect_right(self._contents, content[:size])
            tokens += self._tokens[first:last]
        return tokens

    def _beginning_with(self, content: bytes) -> list[int]:
        first = bisect_left(self._contents, content)
        last = bisect_right(
            self._contents, content, lo=first, key=lambda other: other[: len(content)]
        )
        return self._tokens[first:last]


@dataclass(frozen=True)
class Healing:
    """What was taken back from each prompt of a batch, and where the text behind it ends.

    Attributes:
        vocabulary: the tokenizer's.
        held: the bytes that were taken back from each prompt.
        length: how many tokens the model reads before it writes.
        new_tokens: how many tokens a text has behind its prompt.
        stops: a text ends with the first of these, too.
    """

    vocabulary: Vocabulary
    held: Sequence[bytes]
    length: int
    new_tokens: int
    stops: Sequence[bytes]

    def rows(self, input_ids: Tensor) -> Iterator[tuple[bytes, list[int]]]:
        """The bytes that each row is held to, and the tokens written so far. A prompt's beams are
        consecutive."""
        beams = len(input_ids) // len(self.held)
        for number, tokens in enumerate(input_ids[:, self.length :].tolist()):
            yield self.held[number // beams], tokens

    def hold(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """A logits processor that forbids what disagrees with the bytes."""
        rows = []
        for row, (held, tokens) in zip(scores, self.rows(input_ids), strict=True):
            content = self.vocabulary.content(tokens[: len(held)])
            if len(content) < len(held):
                row = _only(row, self.vocabulary.agreeing(held[len(content) :]))
            rows.append(row)
        return torch.stack(rows)

    def is_done(self, input_ids: Tensor, scores: Any) -> Tensor:
        """A stopping criterion."""
        done = [
            len(tokens) >= self._end(held, tokens)
            for held, tokens in self.rows(input_ids)
        ]
        return torch.tensor(done, device=input_ids.device)

    def texts(self, input_ids: Tensor) -> list[list[int]]:
        """The tokens written in place of what was taken back, and behind it, up to their end."""
        return [
            tokens[: self._end(held, tokens)] for held, tokens in self.rows(input_ids)
        ]

    def _end(self, held: bytes, tokens: Sequence[int]) -> int:
        """How many tokens a text has, if it goes on far enough."""
        end = self.vocabulary.count_within(held, tokens) + self.new_tokens
        content = self.vocabulary.content(tokens)
        for stop in self.stops:
            position = content.find(stop, len(held))
            if position >= 0:
                rest = content[: position + len(stop) - 1]
                end = min(end, self.vocabulary.count_within(rest, tokens) + 1)
        return end


class HealedStreamer:
    """Gives another streamer the prompt, and then what is written behind it.

    Args:
        streamer: the other one.
        prompt: the prompt's tokens.
        healing: what was taken back from the prompt.
        tokenizer: the model's.
    """

    def __init__(
        self,
        streamer: Any,
        prompt: Sequence[int],
        healing: Healing,
        tokenizer: "PreTrainedTokenizerBase",
    ) -> None:
        self._streamer = streamer
        self._prompt = prompt
        self._healing = healing
        self._tokenizer = tokenizer
        self._has_prompt = False
        # Up to the end of what was taken back.
        self._written: list[int] = []

    def put(self, value: Tensor) -> None:
        """The row that the model reads comes first, and then each token."""
        [held], vocabulary = self._healing.held, self._healing.vocabulary
        size = len(vocabulary.content(self._written))
        if not self._has_prompt:
            self._has_prompt = True
            self._streamer.put(torch.tensor([self._prompt]))
        elif size >= len(held):
            self._streamer.put(value)
        else:
            self._written += value.tolist()
            # The last token may stand for the rest, and more.
            text = vocabulary.content(self._written)[len(held) :].decode(
                errors="replace"
            )
            if text:
                tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
                self._streamer.put(torch.tensor(tokens))

    def end(self) -> None:
        """Nothing comes any more."""
        self._streamer.end()


def _only(scores: Tensor, tokens: Sequence[int]) -> Tensor:
    """The scores of these tokens, and -inf for all others."""
    allowed = torch.tensor(tokens, device=scores.device)
    values = scores[allowed]
    # Another processor may have forbidden them all.
    if values.isneginf().all():
        values = torch.zeros_like(values)
    return torch.full_like(scores, -torch.inf).index_copy(0, allowed, values)


def _bytes_of_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, bytes]:
    bytes_of = bytes_of_token(tokenizer)
    if bytes_of is None:
        return {}
    special = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    contents = {}
    for text, token in tokenizer.get_vocab().items():
        is_byte = BYTE_FALLBACK.fullmatch(text)
        if token in added and not is_byte:
            content = b"" if added[token].special else text.encode()
        else:
            content = bytes_of(text)
        if content and token not in special:
            contents[token] = content
    return contents
