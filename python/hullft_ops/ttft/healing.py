"""Continuing a prompt from the last boundary of tokens that the model itself would make.

A prompt may end within what the model would write as one token: after the first letters of a word,
or the first spaces of an indentation. Its last tokens are then not the ones that the model has
learned to continue. They are taken back, and what is written in their place is held to their bytes.
"""

import re
from bisect import bisect_left, bisect_right
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hullft_ops.ttft.endings import Ending

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How SentencePiece writes a byte.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Of an added token that stands between texts, files or the parts of one to fill in.
_MARK = re.compile(
    r"<.*(fim|end_?of_?text|file_?(sep|name)|repo_?name|code_(prefix|suffix|middle)).*>"
    r"|<(PRE|SUF|MID|EOT)>"
)
# Longer tokens are rulers and blank lines, which continue a prompt by chance alone.
_LONGEST = 128


class Vocabulary:
    """The bytes that the tokens of a tokenizer stand for.

    Special tokens stand for none, and so do all of a tokenizer that is neither of GPT-2's kind,
    which writes bytes, nor of SentencePiece's: its prompts are not healed.

    Attributes:
        marks: the tokens that stand between texts, such as "<|file_sep|>": one ends a text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._tokenizer = tokenizer
        self._added = tokenizer.added_tokens_decoder
        self.marks = [
            token for token, added in self._added.items() if _MARK.search(added.content)
        ]
        self._special = {*tokenizer.all_special_ids, *self.marks}
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

    def spelled(self, content: bytes) -> list[int]:
        """Tokens that together stand for these bytes, the first as long as possible."""
        known = dict(zip(*self._sorted, strict=True))
        tokens = []
        while content:
            sizes = range(len(content), 0, -1)
            size = next(size for size in sizes if content[:size] in known)
            tokens.append(known[content[:size]])
            content = content[size:]
        return tokens

    def _beginning_with(self, content: bytes) -> list[int]:
        contents, tokens = self._sorted
        first = bisect_left(contents, content)
        last = bisect_right(
            contents, content, lo=first, key=lambda other: other[: len(content)]
        )
        return tokens[first:last]


@dataclass(frozen=True)
class Limits:
    """Where a text ends, counted from the end of its prompt.

    Attributes:
        longest: how many tokens it has at most.
        shortest: how many it has before it ends itself.
        last: the tokens by which it does.
        stops: a text ends with the first of these, too.
        stop_at: as in `Ending`.
    """

    longest: int
    shortest: int = 0
    last: Sequence[int] = ()
    stops: Sequence[bytes] = ()
    stop_at: str | None = None


@dataclass(frozen=True)
class Healing:
    """What was taken back from each prompt of a batch, and where the text after it ends.

    Attributes:
        vocabulary: the tokenizer's.
        held: the bytes that were taken back from each prompt.
        endings: where the text after each ends.
        length: how many tokens the model reads before it writes.
        limits: of all texts.
    """

    vocabulary: Vocabulary
    held: Sequence[bytes]
    endings: Sequence[Ending]
    length: int
    limits: Limits

    @property
    def longest(self) -> int:
        """How many tokens may be written: what was taken back may be written byte by byte."""
        return self.limits.longest + max(map(len, self.held))

    def rows(self, input_ids: Tensor) -> Iterator[tuple[int, list[int]]]:
        """The number of each row's prompt, whose beams are consecutive, and the tokens so far."""
        beams = len(input_ids) // len(self.held)
        for number, tokens in enumerate(input_ids[:, self.length :].tolist()):
            yield number // beams, tokens

    def behind(self, number: int, tokens: Sequence[int]) -> bytes:
        """The bytes after a prompt."""
        return self.vocabulary.content(tokens)[len(self.held[number]) :]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As a logits processor, it forbids what disagrees with the bytes and the limits."""
        rows = zip(scores, self.rows(input_ids), strict=True)
        return torch.stack([self._allowed(row, *written) for row, written in rows])

    def _allowed(self, scores: Tensor, number: int, tokens: Sequence[int]) -> Tensor:
        held = self.held[number]
        content = self.vocabulary.content(tokens[: len(held)])
        if len(content) < len(held):
            return _only(scores, self.vocabulary.agreeing(held[len(content) :]))
        count = len(tokens) - self.vocabulary.count_within(held, tokens)
        if count < self.limits.shortest:
            last = torch.tensor(self.limits.last, device=scores.device)
            return scores.index_fill(0, last, -torch.inf)
        return scores

    def is_done(self, input_ids: Tensor, scores: Any) -> Tensor:
        """A stopping criterion."""
        done = [
            len(tokens) >= self._end(number, tokens)
            for number, tokens in self.rows(input_ids)
        ]
        return torch.tensor(done, device=input_ids.device)

    def texts(self, input_ids: Tensor) -> list[list[int]]:
        """The tokens written in place of what was taken back, and after it, up to their end."""
        marks = self.vocabulary.marks
        return [
            [*takewhile(lambda t: t not in marks, tokens[: self._end(number, tokens)])]
            for number, tokens in self.rows(input_ids)
        ]

    def _end(self, number: int, tokens: Sequence[int]) -> int:
        """How many tokens a text has, if it goes on far enough."""
        held = self.held[number]
        end = self.vocabulary.count_within(held, tokens) + self.limits.longest
        stops = self.limits.stops
        content = self.vocabulary.content(tokens) if stops else b""
        for stop in stops:
            position = content.find(stop, len(held))
            if position >= 0:
                rest = content[: position + len(stop) - 1]
                end = min(end, self.vocabulary.count_within(rest, tokens) + 1)
        ending = self.endings[number]
        if ending and ending.place(_text(self.behind(number, tokens))) is not None:
            end = min(end, len(tokens))
        return end


class HealedStreamer:
    """Gives another streamer the prompt, and then what is written after it.

    Args:
        streamer: the other one.
        prompt: the prompt's tokens.
        healing: what was taken back from the prompt, and where the text ends.
    """

    def __init__(self, streamer: Any, prompt: Sequence[int], healing: Healing) -> None:
        self._streamer = streamer
        self._prompt: Sequence[int] | None = prompt
        self._healing = healing
        self._tokens: list[int] = []
        # How many bytes after the prompt were passed on.
        self._passed = 0

    def put(self, value: Tensor) -> None:
        """The row that the model reads comes first, and then each token, which is passed on at
        once if the text cannot end before it."""
        if self._prompt is not None:
            self._streamer.put(torch.tensor([self._prompt]))
            self._prompt = None
            return
        healing = self._healing
        is_behind = len(healing.vocabulary.content(self._tokens)) >= len(
            healing.held[0]
        )
        self._tokens += value.tolist()
        if healing.endings[0]:
            self._pass_on(healing.endings[0].settled)
        elif not is_behind:
            # The last token may stand for the rest, and more.
            self._pass_on(None)
        elif self._tokens[-1] not in healing.vocabulary.marks:
            self._streamer.put(value)

    def _pass_on(
        self, end: Callable[[str], int | None] | None, *, is_whole: bool = False
    ) -> None:
        """Pass on what is new of the bytes after the prompt, up to the end of their text."""
        content = self._healing.behind(0, self._tokens)
        if end is not None:
            text = _text(content, is_whole=is_whole)
            content = text[: end(text)].encode()
        tokens = self._healing.vocabulary.spelled(content[self._passed :])
        if tokens:
            self._passed = len(content)
            self._streamer.put(torch.tensor(tokens))

    def end(self) -> None:
        """Nothing comes any more."""
        if self._healing.endings[0]:
            self._pass_on(self._healing.endings[0].place, is_whole=True)
        self._streamer.end()


def _text(content: bytes, *, is_whole: bool = False) -> str:
    """The text of bytes, without a last character that is not whole yet."""
    return getincrementaldecoder("utf-8")("replace").decode(content, is_whole)


def _only(scores: Tensor, tokens: Sequence[int]) -> Tensor:
    """The scores of these tokens, and -inf for all others."""
    allowed = torch.tensor(tokens, device=scores.device)
    values = scores[allowed]
    # Another processor may have forbidden them all.
    if values.isneginf().all():
        values = torch.zeros_like(values)
    return torch.full_like(scores, -torch.inf).index_copy(0, allowed, values)
