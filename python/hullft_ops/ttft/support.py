"""A prompt's support: the passages to finetune on, and those that stand before the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from hullft_ops._checks import check_text
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.context import fitting_passages
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
        context_ids: the tokens of each of those.
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
    """Selects the supports of prompts in a datastore.

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

    def select(self, prompts: Sequence[str]) -> list[Support]:
        """The support of each prompt.

        Raises:
            TypeError, ValueError: a prompt is not a str, or blank.
        """
        if isinstance(prompts, str):
            raise TypeError("select: prompts must be a sequence of str, got one str")
        prompts = list(prompts)
        for prompt in prompts:
            check_text("select", "prompt", prompt)
            if not prompt.strip():
                raise ValueError(f"select: prompt must have text, got {prompt[:20]!r}")
        if not prompts:
            return []
        shared = StageClock(_CPU)
        with shared.of("embed"):
            vectors = encode_checked("select", self.embedder, list(prompts))
            queries = torch.from_numpy(vectors)
        with shared.of("search"):
            count = max(self.config.pool_size, self.config.context)
            _, nearest = self.store.search(queries, min(count, len(self.store)))
        with shared.of("select"):
            supports = self._supports(nearest[:, : self.config.pool_size], queries)
        return [
            self._tokenized(support, prompt, nearest[i].tolist(), shared, len(prompts))
            for i, (support, prompt) in enumerate(zip(supports, prompts, strict=True))
        ]

    def _supports(self, candidates: Tensor, queries: Tensor) -> list[Support]:
        """The support of each query, still without tokens."""
        if not self.config.n_select:
            return [Support([], [], [], float(q.norm()), 0.0) for q in queries]
        selection = select_passages(
            self.config, self.store.embeddings, candidates, queries
        )
        supports = []
        for i, row in enumerate(candidates):
            size = int(selection.support_size[i])
            support = Support(
                indices=row[selection.indices[i, :size]].tolist(),
                weights=selection.weights[i, :size].tolist(),
                counts=selection.counts[i, :size].tolist(),
                residual=float(selection.residual[i]),
                gap=float(selection.gap[i]),
            )
            supports.append(support)
        return supports

    def _tokenized(
        self,
        support: Support,
        prompt: str,
        nearest: list[int],
        shared: StageClock,
        prompts: int,
    ) -> Support:
        """The support with its tokens. ``shared`` has the time of so many prompts."""
        clock = StageClock(_CPU)
        with clock.of("tokenize"):
            input_ids = [self._tokens(index) for index in support.indices]
            counts = [
                count if len(tokens) >= MIN_TOKENS else 0
                for count, tokens in zip(support.counts, input_ids, strict=True)
            ]
            context_ids = fitting_passages(
                self.store,
                self.tokenizer,
                prompt,
                nearest[: self.config.context],
                self.window,
            )
        seconds = {stage: s / prompts for stage, s in shared.seconds().items()}
        return replace(
            support,
            counts=counts,
            input_ids=input_ids,
            # The nearest stands last.
            context_indices=nearest[: len(context_ids)][::-1],
            context_ids=context_ids[::-1],
            datastore=self.store.identity,
            seconds=seconds | clock.seconds(),
        )

    def _tokens(self, index: int) -> list[int]:
        text = self.store.texts[index]
        encoding = self.tokenizer(text, truncation=True, max_length=self.max_length)
        return list(encoding["input_ids"])
