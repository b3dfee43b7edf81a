"""Search by words: BM25 over the passages of a store, which needs no model.

The words of identifiers count apart: ``HTMLParser.feed_all2`` has html, parser, feed, all and 2.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hullft_ops._extras import needed_by
from hullft_ops.ttft.errors import input_errors

if TYPE_CHECKING:
    from bm25s import BM25

# A word up to the next capital, capitals that no such word follows, or a number.
_CAPITAL = "A-ZÀ-ÖØ-Þ"
_OTHERS = rf"[^\W\d_{_CAPITAL}]"
_WORD = re.compile(rf"[{_CAPITAL}]?{_OTHERS}+|[{_CAPITAL}]+(?!{_OTHERS})|\d+")


class Words:
    """An index of the words of texts, which `build` makes and `open` maps."""

    def __init__(self, index: "BM25") -> None:
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
    def open(cls, folder: Path, count: int) -> "Words":
        """Map the files of `save` for so many texts. ValueError if they are damaged."""
        with needed_by("search by words"):
            from bm25s import BM25
        with input_errors(str(folder)):
            index = BM25.load(folder, mmap=True)
            arrays = index.scores
            starts, texts = arrays["indptr"], arrays["indices"]
            if (
                arrays["num_docs"] != count
                or sorted(index.vocab_dict.values()) != [*range(len(starts) - 1)]
                or (np.diff(starts) < 0).any()
                or (starts[0], starts[-1]) != (0, len(texts))
                or len(texts) != len(arrays["data"])
                or not 0 <= texts.min() <= texts.max() < count
            ):
                raise ValueError("is damaged")
            return cls(index)

    def save(self, folder: Path) -> None:
        """Write arrays of numpy and JSON into the folder."""
        self._index.save(folder, show_progress=False)

    def search(self, query: str, k: int) -> Tensor:
        """Positions int64 ``[n]`` of the texts that share a word with the query, n at most ``k``,
        nearest first: by Lucene's BM25 of the different words, and on ties the lower position."""
        words = self._index.get_tokens_ids(dict.fromkeys(words_in(query)))
        scores = self._index.get_scores_from_ids(words)
        k = min(k, len(scores))
        least = max(np.partition(scores, -k)[-k], np.finfo(np.float32).tiny)
        positions = np.flatnonzero(scores >= least)
        order = np.argsort(-scores[positions], kind="stable")[:k]
        return torch.from_numpy(positions[order])


def words_in(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def last_words(text: str, count: int) -> str:
    """The end of a text, of so many words."""
    starts = [match.start() for match in _WORD.finditer(text)]
    return text[starts[-count] :] if len(starts) > count else text
