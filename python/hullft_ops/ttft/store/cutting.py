"""Cutting a text into verbatim passages."""

import re
from collections.abc import Iterator

# About this much source fills the 256 tokens that the default embedder reads.
PASSAGE_CHARS = 800

# Strongest first: a top-level definition, a method, a blank line, a line, a word.
_BOUNDARIES = (
    re.compile(r"^(?:@.*\n)*(?:class|def|async def) ", re.MULTILINE),
    re.compile(r"^ {4}(?:@.*\n {4})*(?:def|async def) ", re.MULTILINE),
    re.compile(r"(?<=\n\n)(?!\n)"),
    re.compile(r"(?<=\n)"),
    re.compile(r"(?<=\s)(?=\S)"),
)


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
