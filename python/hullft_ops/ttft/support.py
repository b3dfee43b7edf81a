"""A prompt's support: the passages to finetune on, and those that stand before the prompt."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from hullft_ops._checks import check_text
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.embedding import Embedder, encode_checked
from hullft_ops.ttft.methods import select_passages
from hullft_ops.ttft.steps import StageClock
from hullft_ops.ttft.store.base import Store

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
        weights: the convex weights; "knn" and "random" give equal ones.
        counts: optimizer steps on each passage. They sum to n_select, or to less if the method
            takes one step a passage and the pool is smaller, or a passage has no next token to
            train on. "hullft" may leave a passage without a step, even a heavy one, to keep the
            mean over the steps near the prompt.
        residual: distance from the prompt's embedding to the weighted mean; its norm without
            passages.
        gap: Frank-Wolfe gap over the pool.
        input_ids: the tokens of each passage, cut to the model's window.
        context_indices: positions of the retrieved passages before the prompt, nearest last.
        context_texts: the text of each of those, with the passages that follow it, as it is read.
        context_ids: the tokens of each of those texts.
        datastore: identity of the datastore that the positions belong to.
        seconds: wall-clock time by stage: embed, search, select, tokenize.
    """

    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    input_ids: list[list[int]] = field(default_factory=list)
    context_indices: list[int] = field(default_factory=list)
    context_texts: list[str] = field(default_factory=list)
    context_ids: list[list[int]] = field(default_factory=list)
    datastore: str = ""
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class SupportSelector:
    """Selects the support of a prompt in a datastore.

    Attributes:
        max_length: tokens to cut passages to.
        window: tokens that the model reads at once, which limits the retrieved passages.
    """

    store: Store
    embedder: Embedder
    tokenizer: "PreTrainedTokenizerBase"
    config: TTFTConfig
    max_length: int
    window: int

    def select(self, prompt: str) -> Support:
        """The support of a prompt.

        Raises:
            TypeError, ValueError: the prompt is not a str, or blank.
        """
        check_text("select", "prompt", prompt)
        if not prompt.strip():
            raise ValueError(f"select: prompt must have text, got {prompt[:20]!r}")
        clock = StageClock(_CPU)
        with clock.of("embed"):
            vectors = encode_checked("select", self.embedder, [prompt])
            query = torch.from_numpy(vectors)
        with clock.of("search"):
            count = max(self.config.pool_size, self.config.context)
            _, nearest = self.store.search(query, min(count, len(self.store)))
        with clock.of("select"):
            support = self._selected(nearest[:, : self.config.pool_size], query)
        with clock.of("tokenize"):
            support = self._tokenized(support, prompt, nearest[0].tolist())
        return replace(support, seconds=clock.seconds())

    def _selected(self, candidates: Tensor, query: Tensor) -> Support:
        """The support, still without tokens, of ``query`` [1, dim]."""
        if not self.config.n_select:
            return Support([], [], [], residual=float(query.norm()), gap=0.0)
        selection = select_passages(
            self.config, self.store.embeddings, candidates, query
        )
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
        input_ids = self._tokens(support.indices)
        counts = [
            count if len(tokens) >= MIN_TOKENS else 0
            for count, tokens in zip(support.counts, input_ids, strict=True)
        ]
        runs = retrieved_runs(
            self.store,
            nearest[: self.config.context],
            self.config.context_following,
        )
        texts, context_ids = self._fitting(prompt, runs)
        # The nearest stands last.
        runs = runs[: len(texts)][::-1]
        return replace(
            support,
            counts=counts,
            input_ids=input_ids,
            context_indices=[*chain.from_iterable(runs)],
            context_texts=texts[::-1],
            context_ids=context_ids[::-1],
            datastore=self.store.identity,
        )

    def _fitting(
        self, prompt: str, runs: Sequence[Sequence[int]]
    ) -> tuple[list[str], list[list[int]]]:
        """The first runs of passages, as many as fit before the prompt: texts and tokens."""
        tokens, opening = opened_tokens(self.tokenizer, prompt)
        room = room_before(len(tokens), opening, self.window)
        texts: list[str] = []
        ids: list[list[int]] = []
        for run in runs:
            text = "".join(self.store.texts[index] for index in run)
            if run:
                text += SEPARATOR
            tokens = self._context_tokens(text)
            room -= len(tokens)
            if room < 0:
                break
            texts.append(text)
            ids.append(tokens)
        if len(texts) < len(runs):
            warnings.warn(
                f"there is room for {len(texts)} of {len(runs)} retrieved passages before the "
                f"prompt: the model reads {self.window} tokens",
                stacklevel=2,
            )
        return texts, ids

    def _context_tokens(self, text: str) -> list[int]:
        encoding = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return list(encoding["input_ids"])

    def has_made(self, support: Support) -> bool:
        """Whether the support's tokens are those that this tokenizer makes of its passages."""
        context_ids = [self._context_tokens(text) for text in support.context_texts]
        return (
            self._tokens(support.indices) == support.input_ids
            and context_ids == support.context_ids
        )

    def _tokens(self, indices: Sequence[int]) -> list[list[int]]:
        """The tokens of each of these passages, as a model is trained on them."""
        rows = []
        for index in indices:
            run = with_following(self.store, index, self.config.train_following)
            text = "".join(self.store.texts[position] for position in run)
            # Truncation is a state of the tokenizer, which another thread may be using.
            encoding = self.tokenizer(text, verbose=False)
            rows.append(list(encoding["input_ids"])[: self.max_length])
        return rows


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


def opened_tokens(
    tokenizer: "PreTrainedTokenizerBase", text: str
) -> tuple[list[int], int]:
    """The tokens without those that the tokenizer appends to end a text, and how many open it."""
    encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    tokens = list(encoding["input_ids"])
    is_special = list(encoding["special_tokens_mask"])
    # Keep one token of an empty text: the model can continue the token that opens a text.
    while len(tokens) > 1 and is_special[-1]:
        tokens.pop()
        is_special.pop()
    opening = is_special.index(0) if 0 in is_special else len(is_special)
    return tokens, opening


def room_before(length: int, opening: int, window: int) -> int:
    """How many tokens may stand before ``length`` tokens, of which ``opening`` special ones open.

    As many as leave room for the whole text. Before a text longer than half of the window they may
    take the other half, or a little less, because a window needs two tokens of the text.
    """
    room = max(window - length, window // 2 - opening)
    return max(0, min(room, window - opening - 2))
