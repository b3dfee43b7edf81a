"""Where a completion ends: with the line, the block or the expression, and before the suffix."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

_INDENTATION = re.compile(r"^[ \t]*(?=\S)", re.MULTILINE)
_QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
# With what is blank before and between them.
_TWO_LINES = re.compile(r"\s*\S[^\n]*\n\s*\S[^\n]*")


def _line(line: str, text: str) -> int | None:
    """Where the first line ends that shows something."""
    shown = re.search(r"\S[^\n]*(?=\n)", text)
    return shown.end() if shown else None


def _expression(line: str, text: str) -> int | None:
    """Where a line ends after which no bracket of these lines is open."""
    for newline in re.finditer("\n", text):
        end = newline.start()
        code = _QUOTED.sub("", line + text[:end])
        opened = sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))
        if opened <= 0 and text[:end].strip():
            return end
    return None


def _block(line: str, text: str) -> int | None:
    """Where the lines end that are indented as far as the first that shows something, or more."""
    whole = line + text
    shown = len(line) + len(text) - len(text.lstrip())
    lines = [*_INDENTATION.finditer(whole)]
    widths = [len(each[0]) for each in lines if each.start() <= shown]
    for each in lines:
        if each.start() > shown and len(each[0]) < widths[-1]:
            return len(whole[: each.start()].rstrip()) - len(line)
    return None


StopAt = Literal["line", "block", "expression"]
STOPS = {"line": _line, "expression": _expression, "block": _block}


@dataclass(frozen=True)
class Ending:
    """Where what is written at a cursor ends, if the model goes on.

    Attributes:
        stop_at: a key of `STOPS`; None for none.
        line: what stands before the cursor in its line.
        suffix: the text after the cursor, of which two lines are not written again.
    """

    stop_at: str | None = None
    line: str = ""
    suffix: str = ""

    def __bool__(self) -> bool:
        return bool(self.stop_at or self._again)

    # Each token that is written asks for it.
    @cached_property
    def _again(self) -> str:
        lines = _TWO_LINES.match(self.suffix)
        return lines[0] if lines else ""

    def place(self, text: str) -> int | None:
        """Where a text ends; None if nothing in it ends it."""
        ends = [STOPS[self.stop_at](self.line, text)] if self.stop_at else []
        if self._again and self._again in text:
            ends.append(text.find(self._again))
        return min((end for end in ends if end is not None), default=None)

    def settled(self, text: str) -> int:
        """How much of an unfinished text stays, whatever follows."""
        end = self.place(text)
        if end is not None:
            return end
        sizes = range(min(len(self._again), len(text)), 0, -1)
        again = next((n for n in sizes if text.endswith(self._again[:n])), 0)
        shown = len(text.rstrip()) if self.stop_at == "block" else len(text)
        return min(shown, len(text) - again)
