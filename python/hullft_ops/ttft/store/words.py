"""Search by words: BM25 over the passages of a store, which needs no model.

The words of identifiers count apart: ``HTMLParser.feed_all2`` has html, parser, feed, all and 2.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from hullft_ops._extras import needed_by

if TYPE_CHECKING:
    from bm25s import BM25

# A word up to the next capital, capitals that no such word follows, or a number.
_CAPITAL = "A-ZÀ-ÖØ-Þ"
_OTHERS = rf"[^\W\d_{_CAPITAL}]"
_WORD = re.compile(rf"[{_CAPITAL}]?{_OTHERS}+|[{_CAPITAL}]+(?!{_OTHERS})|\d+")
# A search adds the scores of its rarest words, up to so many passages of these words together.
_MOST_SCORES = 2_000_000


class WordSearch(Protocol):
    """What a store may have as ``words``."""

    def search(self, query: str, k: int) -> Tensor:
        """Positions int64 ``[n]`` of the texts that share a word with the query, n at most ``k``,
        nearest first."""


class Words:
    """A `WordSearch` by Lucene's BM25. Of equal scores, the lower position comes first."""

    def __init__(self, index: "BM25") -> None:
        self._vocabulary = index.vocab_dict
        self._count = index.scores["num_docs"]
        # By word, from where to where its passages and their scores stand.
        self._starts = index.scores["indptr"]
        self._positions = index.scores["indices"]
        self._scores = index.scores["data"]
        self._index = index

    @classmethod
    def build(cls, texts: Iterable[str]) -> "Words":
        """Index the texts, in memory."""
        with needed_by("search by words"):
            from bm25s import BM25
        vocabulary = defaultdict[str, int](count().__next__)
        # Every text has the word "", which no query has: bm25s divides by the mean length.
        ids = [[vocabulary[word] for word in ("", *words_in(text))] for text in texts]
        index = BM25()
        index.index((ids, dict(vocabulary)), show_progress=False)
        return cls(index)

    @classmethod
    def open(cls, folder: Path, texts: int) -> "Words":
        """Map the files that `save` wrote, for so many texts. ValueError if they are damaged."""
        with needed_by("search by words"):
            from bm25s import BM25
        try:
            words = cls(BM25.load(folder, mmap=True))
            words._check(texts)
        # The libraries do not document what they raise for foreign files.
        except Exception as error:
            raise ValueError(f"{folder} is damaged: {error}") from error
        return words

    def _check(self, texts: int) -> None:
        """ValueError unless a search reads within the arrays."""
        end = self._starts[-1]
        sizes = (self._count, len(self._positions), len(self._scores))
        last_word = max(self._vocabulary.values())
        last_text = self._positions.max(initial=0)
        is_within = last_word < len(self._starts) - 1 and last_text < texts
        if sizes != (texts, end, end) or not is_within:
            raise ValueError("its files contradict each other")

    def save(self, folder: Path) -> None:
        """Write arrays of numpy and JSON into the folder."""
        self._index.save(folder, show_progress=False)

    def search(self, query: str, k: int) -> Tensor:
        """As `WordSearch.search`."""
        counts = Counter(words_in(query))
        known = [word for word in counts if word in self._vocabulary]
        ids = np.array([self._vocabulary[word] for word in known], np.int64)
        starts, ends = self._starts[ids], self._starts[ids + 1]
        rare_first = np.argsort(ends - starts, kind="stable")
        scored = np.cumsum((ends - starts)[rare_first])
        scores = np.zeros(self._count, np.float32)
        for i in rare_first[: 1 + np.searchsorted(scored, _MOST_SCORES)]:
            of_word = slice(starts[i], ends[i])
            scores[self._positions[of_word]] += counts[known[i]] * self._scores[of_word]
        return torch.from_numpy(_largest(scores, k))


def words_in(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def last_words(text: str, count: int) -> str:
    """The end of a text, of so many words."""
    starts = [match.start() for match in _WORD.finditer(text)]
    return text[starts[-count] :] if len(starts) > count else text


def digest_of(folder: Path) -> str:
    """SHA-256 over the files that `Words.save` wrote, in hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def fused(rankings: Sequence[Tensor], k: int) -> Tensor:
    """The first ``k`` of several rankings together, by the sum of their reciprocal ranks.

    That is the fusion of Cormack, Clarke and Buettcher, SIGIR 2009, with their constant of 60.

    Args:
        rankings: positions int64 ``[n]``, nearest first.
    """
    scores = defaultdict[int, float](float)
    for ranking in rankings:
        for rank, position in enumerate(ranking.tolist(), start=1):
            scores[position] += 1 / (60 + rank)
    order = sorted(scores, key=lambda position: (-scores[position], position))
    return torch.tensor(order[:k], dtype=torch.int64)


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """The positions of the ``k`` largest scores above 0, the largest first, lower on ties."""
    k = min(k, len(scores))
    least = np.partition(scores, -k)[-k]
    positions = np.flatnonzero((scores >= least) & (scores > 0))
    order = np.argsort(-scores[positions], kind="stable")
    return positions[order[:k]]
