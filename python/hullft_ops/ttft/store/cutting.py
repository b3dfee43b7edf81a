"""Cutting a text into verbatim passages, by tokens or by characters."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from hullft_ops.ttft.embedding import token_starts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# About this much source fills the 256 tokens that the default embedder reads.
PASSAGE_CHARS = 800
# Characters to tokenize at a time, so that a text of any length takes bounded memory.
_WINDOW = 1 << 18

# Strongest first: a top-level definition, a method, a blank line, a line, a word.
_BOUNDARIES = (
    re.compile(r"^(?:@.*\n)*(?:class|def|async def) ", re.MULTILINE),
    re.compile(r"^ {4}(?:@.*\n {4})*(?:def|async def) ", re.MULTILINE),
    re.compile(r"(?<=\n\n)(?!\n)"),
    re.compile(r"(?<=\n)"),
    re.compile(r"(?<=\s)(?=\S)"),
)


def token_chunks(
    text: str, tokenizer: "PreTrainedTokenizerBase", max_tokens: int
) -> Iterator[str]:
    """Consecutive pieces of ``text`` that join up to it again, of ``max_tokens`` tokens each, not
    counting special ones; one at the end of the text or of 2**18 characters may be shorter."""
    for window in split_passages(text, _WINDOW):
        starts = token_starts(window, tokenizer)
        cuts = [0, *starts[max_tokens::max_tokens], len(window)]
        for begin, end in pairwise(cuts):
            if end > begin:
                yield window[begin:end]


def split_passages(text: str, max_chars: int) -> Iterator[str]:
    """Consecutive pieces of ``text`` that join up to it again, at most ``max_chars`` each.

    That must be at least 4.
    A piece ends at the strongest boundary in the second half of its span, so functions and
    paragraphs stay whole if they fit. No piece of a text that is cut is shorter than
    ``max_chars // 4`` characters.
    """
    start = 0
    while (remaining := len(text) - start) > max_chars:
        end = start + min(max_chars, remaining - max_chars // 4)
        for boundary in _BOUNDARIES:
            matches = [*boundary.finditer(text, start + max_chars // 2, end)]
            if matches:
                end = matches[-1].start()
                break
        yield text[start:end]
        start = end
    if remaining:
        yield text[start:]
