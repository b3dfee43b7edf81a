"""The passages of a datastore that are nearest to a prompt."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from time import perf_counter
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from hullft_ops._checks import check_text
from hullft_ops.ttft.embedding import Embedder, encode_queries
from hullft_ops.ttft.store.base import Store, checked_vectors
from hullft_ops.ttft.store.words import Words, last_words
from hullft_ops.ttft.validation import options_class

# Stands behind each retrieved passage: a blank line tells the model that another text begins.
SEPARATOR = "\n\n"

Search = Literal["dense", "hybrid", "lexical"]
DEFAULT_SEARCH: Search = "dense"
# The prompt's last words, which the answer follows, are a query of their own.
_END_WORDS = 32


@options_class
class SearchOptions:
    """How a prompt's neighbours are found."""

    search: Search | None = None
    """dense by embeddings, lexical by words (BM25), which needs no embedder, hybrid by both; None
    for dense, or lexical without an embedder."""


@options_class
class PoolOptions(SearchOptions):
    """How many neighbours a prompt has."""

    pool_size: PositiveInt = 200
    """How many of the nearest passages to select from, and to take n-grams from."""


@dataclass(frozen=True)
class Neighbours:
    """A prompt, and the passages of a datastore that are nearest to it.

    Attributes:
        prompt: the text.
        store: the datastore; None if nothing was retrieved.
        query: the prompt's embedding, float32 ``[dim]``; None likewise, or without an embedder.
        positions: of the passages in the datastore, nearest first.
        seconds: wall-clock time by stage: embed and search.
    """

    prompt: str
    store: Any = None
    query: Any = None
    positions: Sequence[int] = ()
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


def check_prompt(prompt: str) -> None:
    """TypeError or ValueError unless the prompt is a text that is not blank."""
    check_text("retrieve", "prompt", prompt)
    if not prompt.strip():
        raise ValueError(f"retrieve: prompt must have text, got {prompt[:20]!r}")


def retrieve(
    prompt: str,
    count: int,
    store: Store | None,
    embedder: Embedder | None,
    words: Words | None = None,
) -> Neighbours:
    """The ``count`` passages that are nearest to a prompt, or all if there are fewer.

    Args:
        embedder: searches by embeddings; None for no such search.
        words: searches by words, those of the prompt and those of its end; None likewise.

    Raises:
        TypeError, ValueError: the prompt is not a str, or blank.
    """
    check_prompt(prompt)
    if not count or store is None:
        return Neighbours(prompt)
    count = min(count, len(store))
    seconds: dict[str, float] = {}
    query, rankings = None, []
    start = perf_counter()
    if embedder is not None:
        query = _embedded(prompt, embedder)
        seconds["embed"] = perf_counter() - start
        start = perf_counter()
        rankings.append(store.search(query[None], count)[1][0])
    if words is not None:
        for text in dict.fromkeys((prompt, last_words(prompt, _END_WORDS))):
            rankings.append(words.search(text, count))
    seconds["search"] = perf_counter() - start
    positions = rankings[0] if len(rankings) == 1 else fused(rankings, count)
    return Neighbours(prompt, store, query, positions.tolist(), seconds)


def _embedded(prompt: str, embedder: Embedder) -> Tensor:
    vectors = checked_vectors(
        f"retrieve: the vectors of embedder {embedder.name}",
        encode_queries(embedder, [prompt]),
        count=1,
        dim=embedder.dim,
    )
    return torch.from_numpy(vectors)[0]


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


def text_of(store: Store, run: Sequence[int]) -> str:
    """The text of passages that follow one another, with what separates it from others."""
    return "".join(store.texts[position] for position in run) + SEPARATOR


def retrieved_runs(
    store: Store, nearest: Sequence[int], following: int
) -> list[list[int]]:
    """Each passage with those that follow it, up to one that stands in a run before.

    A passage that stands in a run before has none of its own.
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
