"""A prompt's support: the passages to finetune on, and those that stand before the prompt."""

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from hullft_ops._checks import check_text
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.context import (
    fitting_passages,
    retrieved_runs,
    with_following,
)
from hullft_ops.ttft.embedding import Embedder, encode_checked
from hullft_ops.ttft.methods import select_passages
from hullft_ops.ttft.steps import StageClock
from hullft_ops.ttft.store.base import Store

# A causal loss needs a token and a next one.
MIN_TOKENS = 2
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
        input_ids: the tokens of each passage, cut to the model's context.
        context_indices: positions of the retrieved passages before the prompt, nearest last.
        context_ids: the tokens of each of those, with the passages that follow it.
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
        input_ids = [self._tokens(index) for index in support.indices]
        counts = [
            count if len(tokens) >= MIN_TOKENS else 0
            for count, tokens in zip(support.counts, input_ids, strict=True)
        ]
        runs = retrieved_runs(
            self.store,
            nearest[: self.config.context],
            self.config.context_following,
        )
        context_ids = fitting_passages(
            self.store, self.tokenizer, prompt, runs, self.window
        )
        return replace(
            support,
            counts=counts,
            input_ids=input_ids,
            # The nearest stands last.
            context_indices=[*chain.from_iterable(runs[: len(context_ids)][::-1])],
            context_ids=context_ids[::-1],
            datastore=self.store.identity,
        )

    def _tokens(self, index: int) -> list[int]:
        run = with_following(self.store, index, self.config.train_following)
        text = "".join(self.store.texts[position] for position in run)
        encoding = self.tokenizer(text, truncation=True, max_length=self.max_length)
        return list(encoding["input_ids"])
