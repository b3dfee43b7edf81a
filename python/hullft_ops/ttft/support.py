"""A prompt's support: the passages to finetune on, and those that stand before the prompt."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import Any

import torch
from torch import Tensor

from hullft_ops._checks import check_text
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.embedding import Embedder, encode_queries
from hullft_ops.ttft.methods import select_passages
from hullft_ops.ttft.ngrams import Ngrams
from hullft_ops.ttft.reader import Reader, nearest_that_fit, room_before
from hullft_ops.ttft.steps import StageClock
from hullft_ops.ttft.store.base import Store, checked_vectors

# A causal loss needs a token and a next one.
MIN_TOKENS = 2
# Stands behind each retrieved passage: a blank line tells the model that another text begins.
SEPARATOR = "\n\n"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Support:
    """The passages that a model is trained on for a prompt, largest weight first.

    Attributes:
        indices: positions in the datastore.
        weights: the convex weights; "knn" gives equal ones.
        counts: optimizer steps on each passage. They sum to n_select, or to less if the method is
            "knn" and the pool is smaller, or a passage has no next token to train on. "hullft" may
            leave a passage without a step, even a heavy one, to keep the mean over the steps near
            the prompt.
        residual: distance from the prompt's embedding to the weighted mean; its norm without
            passages.
        gap: Frank-Wolfe gap over the pool.
        input_ids: the tokens of each passage, cut to the model's window.
        prompt_ids: the last tokens of the prompt, as many as fit, to train on.
        prompt_count: optimizer steps on them.
        context_indices: positions of the retrieved passages before the prompt, nearest last.
        context_texts: the text of each of those, with the passages that follow it, as it is read.
        context_ids: the tokens of each of those texts.
        neighbour_ids: the tokens of the neighbours to take n-grams from, each with the passage that
            follows it.
        datastore: identity of the datastore that the positions belong to.
        tokenizer: what made the tokens.
        seconds: wall-clock time by stage: embed, search, select, tokenize.
    """

    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    input_ids: list[list[int]] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    prompt_count: int = 0
    context_indices: list[int] = field(default_factory=list)
    context_texts: list[str] = field(default_factory=list)
    context_ids: list[list[int]] = field(default_factory=list)
    neighbour_ids: list[list[int]] = field(default_factory=list)
    datastore: str = ""
    tokenizer: Any = field(default=None, compare=False, repr=False)
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def steps(self) -> int:
        """Optimizer steps on the passages and on the prompt."""
        return sum(self.counts) + self.prompt_count

    def ngrams(self, config: TTFTConfig) -> Ngrams | None:
        """The neighbours' n-grams with the configuration's weights; None if it has none."""
        if not config.ngrams:
            return None
        ngrams = Ngrams(self.neighbour_ids, config.ngram_weights)
        return ngrams.scaled(config.ngrams)


# The support of any prompt without steps and retrieved passages.
NOTHING = Support([], [], [], residual=1.0, gap=0.0)


def check_prompt(prompt: str) -> None:
    """TypeError or ValueError unless the prompt is a text that is not blank."""
    check_text("select", "prompt", prompt)
    if not prompt.strip():
        raise ValueError(f"select: prompt must have text, got {prompt[:20]!r}")


@dataclass(frozen=True)
class Neighbours:
    """The passages nearest to a prompt.

    Attributes:
        prompt: the text.
        query: its embedding, float32 ``[1, dim]``.
        positions: of the passages in the datastore, int64 ``[1, count]``, nearest first.
        seconds: wall-clock time by stage: embed and search.
    """

    prompt: str
    query: Tensor
    positions: Tensor
    seconds: dict[str, float]


def retrieves(config: TTFTConfig) -> bool:
    """Whether the options need the neighbours of a prompt."""
    return any((config.n_select, config.context, config.ngrams))


def neighbours_needed(config: TTFTConfig) -> int:
    """How many neighbours of a prompt the options look at."""
    return max(config.pool_size, config.context)


@dataclass(frozen=True)
class SupportSelector:
    """Selects the support of a prompt in a datastore.

    Attributes:
        reader: the model that the support is for; its window limits the retrieved passages.
        max_length: tokens to cut passages to that are trained on.
    """

    store: Store
    embedder: Embedder
    reader: Reader
    config: TTFTConfig
    max_length: int

    def neighbours(self, prompt: str, count: int | None = None) -> Neighbours:
        """The ``count`` passages nearest to a prompt; None for as many as the options need.

        Raises:
            TypeError, ValueError: the prompt is not a str, or blank.
        """
        check_prompt(prompt)
        count = count or neighbours_needed(self.config)
        clock = StageClock(_CPU)
        with clock.of("embed"):
            vectors = checked_vectors(
                f"select: the vectors of embedder {self.embedder.name}",
                encode_queries(self.embedder, [prompt]),
                count=1,
                dim=self.embedder.dim,
            )
            query = torch.from_numpy(vectors)
        with clock.of("search"):
            _, positions = self.store.search(query, min(count, len(self.store)))
        return Neighbours(prompt, query, positions, clock.seconds())

    def select(self, prompt: str | Neighbours) -> Support:
        """The support of a prompt, or of one whose neighbours are known. Raises as `neighbours`."""
        if isinstance(prompt, Neighbours):
            near = prompt
        elif retrieves(self.config):
            near = self.neighbours(prompt)
        else:
            check_prompt(prompt)
            return self._with_prompt(NOTHING, prompt)
        clock = StageClock(_CPU)
        with clock.of("select"):
            pool = near.positions[:, : self.config.pool_size]
            support = self._selected(pool, near.query)
        with clock.of("tokenize"):
            nearest = near.positions[0].tolist()
            support = self._tokenized(support, near.prompt, nearest)
            support = self._with_prompt(support, near.prompt)
        return replace(support, seconds=near.seconds | clock.seconds())

    def _selected(self, candidates: Tensor, query: Tensor) -> Support:
        """The support, still without tokens, of ``query`` [1, dim]."""
        if not self.config.n_select:
            return Support([], [], [], residual=float(query.norm()), gap=0.0)
        pool = self.store.vectors(candidates[0])[None]
        selection = select_passages(self.config, pool, query)
        size = int(selection.support_size)
        return Support(
            indices=candidates[0, selection.indices[0, :size]].tolist(),
            weights=selection.weights[0, :size].tolist(),
            counts=selection.counts[0, :size].tolist(),
            residual=float(selection.residual),
            gap=float(selection.gap),
        )

    def _tokenized(self, support: Support, prompt: str, nearest: list[int]) -> Support:
        """The support with the tokens of its passages, and those before the prompt."""
        input_ids = [self._trained_ids(index) for index in support.indices]
        counts = [
            count if len(ids) >= MIN_TOKENS else 0
            for count, ids in zip(support.counts, input_ids, strict=True)
        ]
        runs = retrieved_runs(
            self.store,
            nearest[: self.config.context],
            self.config.context_following,
        )
        # The nearest stands last.
        runs.reverse()
        texts = [self._text_of(run) for run in runs]
        context_ids = [self.reader.passage_ids(text) for text in texts]
        dropped = len(runs) - self._count_that_fits(prompt, context_ids)
        neighbours: list[list[int]] = []
        if self.config.ngrams:
            neighbours = whole_runs(self.store, nearest[: self.config.pool_size])
        return replace(
            support,
            counts=counts,
            input_ids=input_ids,
            context_indices=[*chain.from_iterable(runs[dropped:])],
            context_texts=texts[dropped:],
            context_ids=context_ids[dropped:],
            neighbour_ids=[
                self.reader.passage_ids(self._text_of(run)) for run in neighbours
            ],
            datastore=self.store.identity,
            tokenizer=self.reader.tokenizer,
        )

    def _with_prompt(self, support: Support, prompt: str) -> Support:
        """The support with the prompt's tokens, to train on."""
        ids = self.reader.tokens(prompt).ids[-self.max_length :]
        count = self.config.train_on_prompt if len(ids) >= MIN_TOKENS else 0
        return replace(support, prompt_ids=ids, prompt_count=count)

    def _text_of(self, run: Sequence[int]) -> str:
        text = "".join(self.store.texts[index] for index in run)
        return text + SEPARATOR if run else ""

    def _count_that_fits(self, prompt: str, passages: list[list[int]]) -> int:
        """How many of the passages fit before the prompt. Warns if not all do."""
        tokens, window = self.reader.tokens(prompt), self.reader.window
        room = room_before(len(tokens.ids), tokens.opening, window)
        count = len(nearest_that_fit(passages, room))
        if count < len(passages):
            warnings.warn(
                f"there is room for {count} of {len(passages)} retrieved passages before the "
                f"prompt: the model reads {window} tokens",
                stacklevel=2,
            )
        return count

    def _trained_ids(self, index: int) -> list[int]:
        """The tokens of a passage, as a model is trained on them."""
        ids = self.reader.passage_ids(self.store.texts[index], with_special=True)
        return ids[: self.max_length]


def with_following(store: Store, position: int, following: int) -> list[int]:
    """A passage, and up to so many that follow it in its document."""
    run = [position]
    while len(run) <= following and (after := store.following(run[-1])) is not None:
        run.append(after)
    return run


def retrieved_runs(
    store: Store, nearest: Sequence[int], following: int
) -> list[list[int]]:
    """Each passage with those that follow it, up to one that stands in a run before.

    The runs of the first k passages are the first k runs; one is empty if it would repeat.
    """
    runs = []
    read: set[int] = set()
    for position in nearest:
        run = with_following(store, position, following)
        run = [*takewhile(lambda passage: passage not in read, run)]
        runs.append(run)
        read.update(run)
    return runs


def whole_runs(store: Store, positions: Sequence[int]) -> list[list[int]]:
    """The passages, each with the one that follows it, as runs of passages that are consecutive."""
    members = {member for p in positions for member in with_following(store, p, 1)}
    following = {position: store.following(position) for position in members}
    runs = []
    for begin in members - set(following.values()):
        run = [begin]
        while (after := following[run[-1]]) in members:
            run.append(after)
        runs.append(run)
    return runs
