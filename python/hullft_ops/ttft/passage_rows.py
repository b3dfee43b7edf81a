"""Turning a corpus's records into a datastore's rows: cut, and without repetitions."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hullft_ops.ttft.sources import Record

Cut = Callable[[str], Iterable[str]]
_DIGEST_BYTES = 16
_RECENT = 1 << 14


@dataclass
class Left:
    """How many texts were left out: near-empty ones and exact repetitions."""

    near_empty: int = 0
    repeated: int = 0


class SeenTexts:
    """Remembers texts by a 128-bit digest: 16 bytes for each text.

    Recent digests are in a set, older ones in sorted arrays. Each array is at least twice as long
    as the next, so there are few arrays and a digest is seldom merged.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._sorted: list[np.ndarray] = []

    def add(self, text: str) -> bool:
        """Remember ``text``. True if it was there already."""
        digest = hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
        if digest in self._recent or any(_contains(array, digest) for array in self._sorted):
            return True
        self._recent.add(digest)
        if len(self._recent) == _RECENT:
            self._merge()
        return False

    def _merge(self) -> None:
        new = np.sort(np.array(list(self._recent), dtype=f"S{_DIGEST_BYTES}"))
        self._recent.clear()
        while self._sorted and len(self._sorted[-1]) < 2 * len(new):
            new = np.sort(np.concatenate([self._sorted.pop(), new]), kind="stable")
        self._sorted.append(new)


def passage_rows(
    records: Iterable[Record], cut: Cut | None, min_chars: int, seen: SeenTexts, left: Left
) -> Iterator[Record]:
    """The records' passages, each text once, with the metadata of its record.

    Args:
        records: as `Source.records` yields them.
        cut: cuts a text into passages; None keeps each text whole.
        min_chars: leave out passages with fewer characters, not counting blanks at both ends.
        seen: texts to leave out; each text that comes is added.
        left: counts what is left out.
    """
    for record in records:
        # Cutting an empty text yields nothing, but it must be counted.
        for text in cut(record["text"]) if cut and record["text"] else (record["text"],):
            if len(text.strip()) < min_chars:
                left.near_empty += 1
            elif seen.add(text):
                left.repeated += 1
            else:
                yield {**record, "text": text}


def _contains(array: np.ndarray, digest: bytes) -> bool:
    place = int(np.searchsorted(array, np.bytes_(digest)))
    # NumPy drops the zeros at the end of an element.
    return place < len(array) and bytes(array[place]) == digest.rstrip(b"\0")
