"""JSONL: an object on each line."""

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Those that are not blank, counted from 1, without the mark that may begin a file."""
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line


def object_of(line: bytes) -> dict[str, Any]:
    """The object on a line.

    Raises:
        ValueError: there is none; the message says why, in a few words.
    """
    try:
        found = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    # ValueError also for an integer of more digits than Python reads.
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
