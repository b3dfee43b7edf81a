"""Search by words: BM25 over the passages of a store, which needs no model.

The words of identifiers count apart: ``HTMLParser.feed_all2`` has html, parser, feed, all and 2.
"""

import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A word up to the next capital, capitals that no such word follows, or a number.
_CAPITAL = "A-ZÀ-ÖØ-Þ"
_OTHERS = rf"[^\W\d_{_CAPITAL}]"
_WORD = re.compile(rf"[{_CAPITAL}]?{_OTHERS}+|[{_CAPITAL}]+(?!{_OTHERS})|\d+")

# BM25's constants, as Lucene has them: of a word's repetitions, and of a text's length.
_SATURATION = 1.5
_LENGTH = 0.75
_COUNT = 2**32 - 1


class Postings:
    """Which passages hold each word, in memory.

    Attributes:
        holders: by word, int64: a passage's number, times 2^32, and how often it has the word.
        passages: how many were added.
    """

    def __init__(self) -> None:
        self.holders = defaultdict[str, Any](lambda: array("q"))
        self.passages = 0

    def add(self, number: int, text: str) -> int:
        """Add a passage; how many words it has."""
        words = words_in(text)
        for word, count in Counter(words).items():
            self.holders[word].append((number << 32) + count)
        self.passages += 1
        return len(words)


class Words:
    """Search by words.

    Args:
        holders: gives what `Postings` has for a word, as a buffer; None for a word that no passage
            has.
        numbers: of the passages by position, int64 ``[N]``. Others are not found.
        lengths: how many words each has, int64 ``[N]``.
    """

    def __init__(
        self,
        holders: Callable[[str], Any],
        numbers: np.ndarray,
        lengths: np.ndarray,
    ) -> None:
        self._holders = holders
        self._positions = inverse(numbers)
        # One more, so that the mean is not 0.
        share = (1 + lengths) / (1 + lengths.mean())
        norms = _SATURATION * (1 - _LENGTH + _LENGTH * share)
        self._norms = norms.astype(np.float32)

    @classmethod
    def build(cls, texts: Sequence[str]) -> "Words":
        """Index the texts, in memory."""
        postings = Postings()
        lengths = [postings.add(position, text) for position, text in enumerate(texts)]
        return cls(postings.holders.get, np.arange(len(texts)), np.array(lengths))

    def search(self, query: str, k: int) -> Tensor:
        """Positions int64 ``[n]`` of the texts that share a word with the query, n at most ``k``,
        nearest first: by Lucene's BM25 of the different words, and on ties the lower position."""
        scores = np.zeros(len(self._norms), np.float32)
        for word in dict.fromkeys(words_in(query)):
            holders = np.frombuffer(self._holders(word) or b"", np.int64)
            holders = holders[holders >> 32 < len(self._positions)]
            positions = self._positions[holders >> 32]
            searched = positions >= 0
            positions = positions[searched]
            counts = (holders[searched] & _COUNT).astype(np.float32)
            number = len(positions)
            rarity = math.log(1 + (len(scores) - number + 0.5) / (number + 0.5))
            gain = counts / (self._norms[positions] + counts)
            scores[positions] += np.float32(rarity) * gain
        return nearest_first(scores, k)


def nearest_first(scores: np.ndarray, k: int) -> Tensor:
    """Positions int64 ``[n]`` of the scores above 0, n at most ``k``, largest first; on ties the
    lower position comes first."""
    k = min(k, len(scores))
    least = max(np.partition(scores, -k)[-k], np.finfo(np.float32).tiny)
    positions = np.flatnonzero(scores >= least)
    order = np.argsort(-scores[positions], kind="stable")[:k]
    return torch.from_numpy(positions[order])


def inverse(numbers: np.ndarray) -> np.ndarray:
    """The position of each number, int64; -1 for one that has none."""
    positions = np.full(1 + numbers.max(), -1)
    positions[numbers] = np.arange(len(numbers))
    return positions


def words_in(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def last_words(text: str, count: int) -> str:
    """The end of a text, of so many words."""
    starts = [match.start() for match in _WORD.finditer(text)]
    return text[starts[-count] :] if len(starts) > count else text
