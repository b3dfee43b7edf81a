"""Continuing a prompt from the last boundary of tokens that the model itself would make.

A prompt may end within what the model would write as one token: behind the first letters of a word,
or the first spaces of an indentation. Its last tokens are then others than those that the model has
learned to continue. They are taken back, and what is written in their place is held to their bytes.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How SentencePiece writes a byte.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Longer tokens are rulers and blank lines, which continue a prompt by chance alone.
_LONGEST = 128


class Vocabulary:
    """The bytes that the tokens of a tokenizer stand for.

    Special tokens stand for none, and so do all of a tokenizer that is neither of GPT-2's kind,
    which writes bytes, nor of SentencePiece's: its prompts are not healed.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._added = tokenizer.added_tokens_decoder
        decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
        kinds = b"" if decoder is None else decoder.__getstate__()
        # GPT-2 writes a byte as the character of that number if it shows, else as another.
        table: Any = bytes_to_unicode
        pairs = table().items() if b"ByteLevel" in kinds else ()
        self._characters = {character: byte for byte, character in pairs}
        self._is_sentence_piece = b"ByteFallback" in kinds or b"Metaspace" in kinds

    def __bool__(self) -> bool:
        return bool(self._characters) or self._is_sentence_piece

    @cached_property
    def _sorted(self) -> tuple[list[bytes], list[int]]:
        """The bytes of all tokens, in order, and the tokens."""
        tokens = self._tokenizer.get_vocab().values()
        pairs = sorted((self._bytes_of(token), token) for token in tokens)
        return [content for content, _ in pairs], [token for _, token in pairs]

    def _bytes_of(self, token: int) -> bytes:
        # A model may have ids that its tokenizer lacks.
        text = str(self._tokenizer.convert_ids_to_tokens(token) or "")
        if not self or token in self._special:
            return b""
        if self._is_sentence_piece and _BYTE.fullmatch(text):
            return bytes.fromhex(text[3:5])
        if token in self._added:
            return b"" if self._added[token].special else text.encode()
        if self._characters:
            return bytes(self._characters.get(character, 0) for character in text)
        return text.replace("\u2581", " ").encode()

    def content(self, tokens: Sequence[int]) -> bytes:
        """The bytes of tokens, up to the first that stands for none."""
        return b"".join(self._known(tokens))

    def _known(self, tokens: Sequence[int]) -> Iterator[bytes]:
        return takewhile(bool, map(self._bytes_of, tokens))

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
        contents, every = self._sorted
        tokens = self._beginning_with(content)
        for size in range(1, len(content)):
            first = bisect_left(contents, content[:size])
            tokens += every[first : bisect_right(contents, content[:size])]
        return tokens

    def _beginning_with(self, content: bytes) -> list[int]:
        contents, tokens = self._sorted
        first = bisect_left(contents, content)
        last = bisect_right(
            contents, content, lo=first, key=lambda other: other[: len(content)]
        )
        return tokens[first:last]


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

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As a logits processor, it forbids what disagrees with the bytes."""
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
        content = self.vocabulary.content(tokens) if self.stops else b""
        for stop in self.stops:
            position = content.find(stop, len(held))
            if position >= 0:
                rest = content[: position + len(stop) - 1]
                end = min(end, self.vocabulary.count_within(rest, tokens) + 1)
        return end


@dataclass
class HealedStreamer:
    """Gives another streamer the prompt, and then what is written behind it.

    Attributes:
        streamer: the other one.
        prompt: the prompt's tokens.
        healing: what was taken back from the prompt.
        tokenizer: the model's.
        has_prompt: whether the other one has it.
        written: the tokens up to the end of what was taken back.
    """

    streamer: Any
    prompt: Sequence[int]
    healing: Healing
    tokenizer: "PreTrainedTokenizerBase"
    has_prompt: bool = False
    written: list[int] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        """The row that the model reads comes first, and then each token."""
        [held], vocabulary = self.healing.held, self.healing.vocabulary
        size = len(vocabulary.content(self.written))
        if not self.has_prompt:
            self.has_prompt = True
            self.streamer.put(torch.tensor([self.prompt]))
        elif size >= len(held):
            self.streamer.put(value)
        else:
            self.written += value.tolist()
            # The last token may stand for the rest, and more.
            text = vocabulary.content(self.written)[len(held) :].decode(
                errors="replace"
            )
            if text:
                tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                self.streamer.put(torch.tensor(tokens))

    def end(self) -> None:
        """Nothing comes any more."""
        self.streamer.end()


def _only(scores: Tensor, tokens: Sequence[int]) -> Tensor:
    """The scores of these tokens, and -inf for all others."""
    allowed = torch.tensor(tokens, device=scores.device)
    values = scores[allowed]
    # Another processor may have forbidden them all.
    if values.isneginf().all():
        values = torch.zeros_like(values)
    return torch.full_like(scores, -torch.inf).index_copy(0, allowed, values)
