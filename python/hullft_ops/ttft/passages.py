"""Cutting a document into passages that fit a language model's context."""

import re
from collections.abc import Iterator

# Strongest first: a top-level definition, a method, a blank line, a line, a word.
_BOUNDARIES = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^(?:@.*\n)*(?:class|def|async def) ",
        r"^ {4}(?:@.*\n {4})*(?:def|async def) ",
        r"(?<=\n\n)(?!\n)",
        r"(?<=\n)",
        r"(?<=\s)(?=\S)",
    )
)


def split_passages(text: str, max_chars: int) -> Iterator[str]:
    """Consecutive pieces of ``text`` that join up to it again, at most ``max_chars`` each.

    A piece ends at the strongest boundary in the second half of its span, so functions and
    paragraphs stay whole if they fit. No piece of a text that is cut is shorter than
    ``max_chars // 4`` characters.
    """
    if max_chars < 4:
        raise ValueError(f"split_passages: max_chars must be at least 4, got {max_chars}")
    start = 0
    while start < len(text):
        end = _passage_end(text, start, max_chars)
        yield text[start:end]
        start = end


def _passage_end(text: str, start: int, max_chars: int) -> int:
    remaining = len(text) - start
    if remaining <= max_chars:
        return len(text)
    limit = start + min(max_chars, remaining - max_chars // 4)
    for boundary in _BOUNDARIES:
        cuts = [match.start() for match in boundary.finditer(text, start + max_chars // 2, limit)]
        if cuts:
            return cuts[-1]
    return limit


def normalised(passage: str) -> str:
    """The passage's lines without indentation, trailing space and blank lines.

    Two passages that differ only in layout have the same normalised form.
    """
    return "\n".join(filter(None, (line.strip() for line in passage.splitlines())))
