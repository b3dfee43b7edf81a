"""Windows of lines: what to read before code, found by the lines before the cursor.

A document is cut into blocks of ten lines, and a window is a block with the one before it. Windows
are compared with the lines before the cursor, and the nearest window's second block is found: it
goes on as the lines after the cursor may. That is the search of RepoCoder (Zhang et al.,
arXiv:2303.12570), with BM25 in place of the overlap of sets, and lines that count less the farther
they stand from the cursor.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import count, takewhile
from typing import Any

import numpy as np
from torch import Tensor

from hullft_ops._extras import needed_by
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.words import nearest_first, words_in

BLOCK_LINES = 10
# Chosen on 1,200 lines of pytorch/rl and diffusers.
_QUERY_LINES = 40
# A line counts half as much as one that is so many lines nearer to the cursor.
_HALF_LINES = 5
# A block of the same folder counts so much more than one that shares no folder.
_SAME_FOLDER = 0.3
# As in Lucene: how soon further occurrences of a term count less, and how much length does.
_SATURATION, _LENGTH = 1.2, 0.75
# So much of the beginning of a text finds it in its document.
_BEGINNING_CHARS = 400
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
# The open file is looked for among the documents of so many blocks, and has this share of the lines
# before the cursor.
_CANDIDATES, _SAME_LINES = 10, 0.9
# Files whose comments begin with slashes.
_WITH_SLASHES = re.compile(
    r".*\.(c|cc|cpp|cs|cu|cuh|go|h|hpp|java|jsx?|kt|rs|scala|swift|tsx?)", re.IGNORECASE
)


class LineBlocks:
    """Documents as blocks of ten lines, searched by windows.

    Args:
        documents: the source of each, or None, and its text.
        identity: of the store that they are from.

    Attributes:
        identity: likewise.
        texts: of the blocks, by position.
        sources: likewise, the document of each.
    """

    def __init__(
        self, documents: Iterable[tuple[str | None, str]], identity: str = ""
    ) -> None:
        self.identity = identity
        self.texts: list[str] = []
        self.sources: list[str | None] = []
        self._runs: list[range] = []
        for source, text in documents:
            lines = text.splitlines(keepends=True)
            first = len(self.texts)
            for begin in range(0, len(lines), BLOCK_LINES):
                self.texts.append("".join(lines[begin : begin + BLOCK_LINES]))
                self.sources.append(source)
            if lines:
                self._runs.append(range(first, len(self.texts)))
        self._firsts = {run.start for run in self._runs}

    def __len__(self) -> int:
        return len(self.texts)

    def following(self, position: int) -> int | None:
        """The next block of the same document; None after its last."""
        after = position + 1
        return None if after in self._firsts or after == len(self) else after

    def source_of(self, text: str) -> str | None:
        """The document that the text before a cursor is of: one that has nearly all of its lines.
        None if there is none."""
        lines = {line for line in text.splitlines() if line.strip()}
        nearest = map(int, self.nearest(text, _CANDIDATES))
        for source in dict.fromkeys(self.sources[position] for position in nearest):
            if source is not None:
                document = self._text_of(self._run_of(source))
                if len(lines & {*document.splitlines()}) >= _SAME_LINES * len(lines):
                    return source
        return None

    def _run_of(self, source: str) -> range:
        return next(run for run in self._runs if self.sources[run.start] == source)

    def _text_of(self, run: range) -> str:
        return "".join(self.texts[run.start : run.stop])

    @cached_property
    def _index(self) -> tuple[dict[str, int], Any]:
        """The number of each term, and the BM25 of windows, sparse ``[terms, windows]``."""
        with needed_by("search by windows"):
            from scipy import sparse
        vocabulary = defaultdict[str, int](count().__next__)

        @cache
        def numbers(line: str) -> list[int]:
            return [vocabulary[term] for term in terms_in(line)]

        terms: list[int] = []
        ends = [0]
        for text in self.texts:
            for line in text.splitlines():
                terms += numbers(line)
            ends.append(len(terms))
        blocks = sparse.csr_array(
            (np.ones(len(terms), np.float32), np.array(terms, np.int32), ends),
            shape=(len(self), len(vocabulary)),
        )
        is_preceded = np.ones(len(self), np.float32)
        is_preceded[[*self._firsts]] = 0
        previous = sparse.diags_array(
            is_preceded[1:], offsets=-1, shape=(len(self),) * 2
        )
        return dict(vocabulary), _bm25(blocks + previous @ blocks).T.tocsr()

    def nearest(self, text: str, k: int, source: str | None = None) -> Tensor:
        """Positions int64 ``[n]`` of the blocks, n at most ``k``, whose windows are nearest to the
        end of a text, nearest first.

        Args:
            text: what stands before the cursor.
            source: its document, of which only blocks above ``text`` are found. Blocks of documents
                in its folder count more.
        """
        vocabulary, index = self._index
        weights: dict[int, float] = {}
        for distance, line in enumerate(text.splitlines()[: -_QUERY_LINES - 1 : -1]):
            for term in set(terms_in(line)) & vocabulary.keys():
                weights.setdefault(vocabulary[term], 0.5 ** (distance / _HALF_LINES))
        scores = np.array([*weights.values()], np.float32) @ index[[*weights]]
        if source is not None:
            scores *= self._weights_near(source, text)
        return nearest_first(scores, k)

    def _weights_near(self, source: str, text: str) -> np.ndarray:
        """The weight of each block's score for a text at the end of a document, ``[blocks]``."""
        documents = [self.sources[run.start] for run in self._runs]
        near = [1 + _SAME_FOLDER * _proximity(source, each) for each in documents]
        weights = np.repeat(near, [len(run) for run in self._runs])
        if source in documents:
            run = self._run_of(source)
            document = self._text_of(run)
            above = document[: max(0, document.find(text[:_BEGINNING_CHARS]))]
            # A block is read with the one after it.
            count = max(0, above.count("\n") // BLOCK_LINES - 1)
            weights[run.start + count : run.stop] = 0
        return weights


def line_blocks(store: Store) -> LineBlocks:
    """The documents of a store as blocks of lines: what its ``documents()`` yields, or texts that
    follow one another."""
    documents = getattr(store, "documents", None)
    texts = _joined(store) if documents is None else documents()
    return LineBlocks(texts, store.identity)


def _joined(store: Store) -> Iterator[tuple[str | None, str]]:
    sources: Sequence[str | None] = getattr(store, "sources", [None] * len(store.texts))
    document = ""
    for position, text in enumerate(store.texts):
        document += text
        if store.following(position) != position + 1:
            yield sources[position], document
            document = ""


def heading(source: str | None) -> str:
    """What stands before lines that are read: the path of their document, as a comment."""
    if source is None:
        return ""
    mark = "//" if _WITH_SLASHES.fullmatch(source) else "#"
    return f"{mark} {source}\n"


def terms_in(line: str) -> list[str]:
    """The words of a line, its identifiers whole, and the whole line."""
    return [*words_in(line), *_IDENTIFIER.findall(line), line.strip()]


def _bm25(counts: Any) -> Any:
    """BM25 from how often windows have terms, both sparse ``[windows, terms]``, as in Lucene."""
    frequencies = np.bincount(counts.indices, minlength=counts.shape[1])
    rarity = np.log1p((counts.shape[0] - frequencies + 0.5) / (frequencies + 0.5))
    lengths = counts.sum(axis=1)
    saturation = _SATURATION * (1 - _LENGTH + _LENGTH * lengths / lengths.mean())
    saturation = np.repeat(saturation, np.diff(counts.indptr))
    scores = rarity[counts.indices] * counts.data / (counts.data + saturation)
    counts.data = scores.astype(np.float32)
    return counts


def _proximity(source: str, other: str | None) -> float:
    """How much of their folders two paths share, from 0 to 1."""
    folders, others = (path.split("/")[:-1] for path in (source, other or ""))
    pairs = zip(folders, others, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared / max(len(folders), len(others), 1)
