"""The passages of a datastore that are nearest to a prompt, and the ways to find them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import takewhile
from time import perf_counter
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from hullft_ops.ttft.embedding import Embedder, encode_queries, load_embedder
from hullft_ops.ttft.question import Question
from hullft_ops.ttft.store.base import Store, checked_vectors
from hullft_ops.ttft.store.words import Words, last_words
from hullft_ops.ttft.terminal import waiting
from hullft_ops.ttft.validation import options_class
from hullft_ops.ttft.windows import LineBlocks, heading, line_blocks

# Stands after each retrieved passage: a blank line tells the model that another text begins.
SEPARATOR = "\n\n"
# The prompt's last words, which the answer follows, are a query of their own.
_END_WORDS = 32


class Search:
    """A way to find the passages of a datastore that are nearest to a prompt.

    Attributes:
        embeds: whether it needs an embedder.

    Args:
        store: the datastore.
        embedder: the one that made its embeddings; None if the search needs none.
    """

    embeds: bool = False

    def __init__(self, store: Store, embedder: Embedder | None) -> None:
        self.store = store
        self.embedder: Any = embedder

    def query(self, question: Question) -> Tensor | None:
        """The question's embedding, float32 ``[dim]``; None if the search needs none."""
        return None

    def rankings(
        self, question: Question, query: Tensor | None, count: int
    ) -> list[Tensor]:
        """Positions int64 ``[n]``, n at most ``count``, nearest first; several are fused."""
        raise NotImplementedError


class Dense(Search):
    """By embeddings."""

    embeds = True

    def query(self, question: Question) -> Tensor:
        vectors = checked_vectors(
            f"retrieve: the vectors of embedder {self.embedder.name}",
            encode_queries(self.embedder, [question.text]),
            count=1,
            dim=self.embedder.dim,
        )
        return torch.from_numpy(vectors)[0]

    def rankings(self, question: Question, query: Any, count: int) -> list[Tensor]:
        _, positions = self.store.search(query[None], count)
        return [positions[0]]


class Lexical(Search):
    """By words: by all words of the text, and by the words of its end."""

    @cached_property
    def _built(self) -> Words:
        return Words.build(self.store.texts)

    @property
    def _words(self) -> Words:
        # A store that is refreshed has another index.
        index: Words | None = getattr(self.store, "words", None)
        return self._built if index is None else index

    def rankings(
        self, question: Question, query: Tensor | None, count: int
    ) -> list[Tensor]:
        texts = dict.fromkeys((question.text, last_words(question.text, _END_WORDS)))
        return [self._words.search(text, count) for text in texts]


class Hybrid(Search):
    """By embeddings and by words, whose rankings are fused."""

    embeds = True

    def __init__(self, store: Store, embedder: Embedder | None) -> None:
        super().__init__(store, embedder)
        self._dense = Dense(store, embedder)
        self._lexical = Lexical(store, embedder)

    def query(self, question: Question) -> Tensor:
        return self._dense.query(question)

    def rankings(
        self, question: Question, query: Tensor | None, count: int
    ) -> list[Tensor]:
        by_vectors = self._dense.rankings(question, query, count)
        return by_vectors + self._lexical.rankings(question, query, count)


class Windows(Search):
    """By windows of lines, for code: by the lines before the cursor. What is found are blocks of
    lines of the store's documents, which stand where what is written may stand."""

    def __init__(self, store: Store, embedder: Embedder | None) -> None:
        self._documents = store
        self._blocks = line_blocks(store)

    @property
    def store(self) -> Any:  # type: ignore[override]
        """The blocks of lines."""
        # A store that is refreshed has others.
        if self._blocks.identity != self._documents.identity:
            self._blocks = line_blocks(self._documents)
        return self._blocks

    def rankings(
        self, question: Question, query: Tensor | None, count: int
    ) -> list[Tensor]:
        return [self.store.nearest(question.text, count, question.source)]


SearchName = Literal["dense", "hybrid", "lexical", "windows"]
_KINDS: dict[str, type[Search]] = {
    "dense": Dense,
    "hybrid": Hybrid,
    "lexical": Lexical,
    "windows": Windows,
}


@options_class
class SearchOptions:
    """How a prompt's neighbours are found."""

    search: SearchName | type[Search] | None = None
    """dense by embeddings, lexical by words (BM25), hybrid by both, windows by the lines before the
    cursor, for code; lexical and windows need no embedder. None for dense, or lexical without an
    embedder; in Python a class of your own, a `Search`."""


@options_class
class PoolOptions(SearchOptions):
    """How many neighbours a prompt has."""

    pool_size: PositiveInt = 200
    """How many of the nearest passages to select from, and to take n-grams from."""


def kind_of(
    search: SearchName | type[Search] | None, *, has_embeddings: bool
) -> type[Search]:
    """The class that an option names."""
    if search is None:
        search = "dense" if has_embeddings else "lexical"
    return _KINDS[search] if isinstance(search, str) else search


def embedder_for(
    options: Iterable[SearchOptions], store: Store | None, name: str
) -> Embedder | None:
    """The embedder of that name; None if no search of these options needs one in a store, which is
    None while it is to be made."""
    has_embeddings = store is None or store.embedder is not None
    kinds = [kind_of(each.search, has_embeddings=has_embeddings) for each in options]
    if not any(kind.embeds for kind in kinds):
        return None
    with waiting("loading the embedder"):
        return load_embedder(name)


@dataclass(frozen=True)
class Neighbours:
    """A question, and the passages of a datastore that are nearest to it.

    Attributes:
        question: the prompt, understood.
        store: the datastore; None if nothing was retrieved.
        query: the question's embedding, float32 ``[dim]``; None likewise, or without an embedder.
        positions: of the passages in the datastore, nearest first.
        seconds: wall-clock time by stage: embed and search.
    """

    question: Question
    store: Any = None
    query: Any = None
    positions: Sequence[int] = ()
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


def retrieve(question: Question, count: int, search: Search | None) -> Neighbours:
    """The ``count`` passages that are nearest to a question, or all if there are fewer.

    ValueError if there is no text to search for. A ``search`` of None finds none.
    """
    if not question.text.strip():
        text = question.text[:20]
        raise ValueError(f"retrieve: prompt must have text, got {text!r}")
    if not count or search is None:
        return Neighbours(question)
    count = min(count, len(search.store))
    seconds: dict[str, float] = {}
    start = perf_counter()
    query = search.query(question)
    if query is not None:
        seconds["embed"] = perf_counter() - start
        start = perf_counter()
    rankings = search.rankings(question, query, count)
    seconds["search"] = perf_counter() - start
    positions = rankings[0] if len(rankings) == 1 else fused(rankings, count)
    # The store may go on with another version while the prompt is answered.
    return Neighbours(question, copy(search.store), query, positions.tolist(), seconds)


def fused(rankings: Sequence[Tensor], k: int) -> Tensor:
    """The first ``k`` of several rankings together, by the sum of their reciprocal ranks.

    That is the fusion of Cormack, Clarke and Buettcher, SIGIR 2009, with their constant of 60. On
    ties, the ranking that is named first counts.

    Args:
        rankings: positions int64 ``[n]``, nearest first.
    """
    scores = defaultdict[int, float](float)
    for ranking in rankings:
        for rank, position in enumerate(ranking.tolist(), start=1):
            scores[position] += 1 / (60 + rank)
    order = sorted(scores, key=scores.__getitem__, reverse=True)
    return torch.tensor(order[:k], dtype=torch.int64)


def with_separator(store: Store | LineBlocks, run: Sequence[int]) -> str:
    """The text of passages that follow one another, with what separates it from others."""
    source = store.sources[run[0]] if isinstance(store, LineBlocks) else None
    return (
        heading(source) + "".join(store.texts[position] for position in run) + SEPARATOR
    )


def retrieved_runs(
    store: Store, nearest: Sequence[int], following: int
) -> list[list[int]]:
    """A run for each passage: the passage and the next ones, up to one that is in an earlier run.

    A passage that is in an earlier run has no run of its own.
    """
    runs = []
    read: set[int] = set()
    for position in nearest:
        run = [position]
        while len(run) <= following and (after := store.following(run[-1])) is not None:
            run.append(after)
        run = [*takewhile(lambda passage: passage not in read, run)]
        read.update(run)
        if run:
            runs.append(run)
    return runs


def whole_runs(store: Store, positions: Sequence[int]) -> list[list[int]]:
    """The passages, each with the one that follows it, as runs of passages that are consecutive."""
    following: Any = cache(store.following)
    passages = {*positions, *map(following, positions)} - {None}
    runs = []
    for begin in passages - {*map(following, passages)}:
        run = [begin]
        while (after := following(run[-1])) in passages:
            run.append(after)
        runs.append(run)
    return runs
