"""Choosing a prompt's support: the texts to finetune on, and those that stand before it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

import hullft_ops
from hullft_ops._checks import check_text
from hullft_ops.ttft.model.memory import out_of_memory_explained
from hullft_ops.ttft.model.prefix import fitting, opened_tokens, prefix_room
from hullft_ops.ttft.retrieval.methods import SelectionMethod, method_name, steps_of
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.embedding import Embedder, encode_checked
from hullft_ops.ttft.training.steps import StageClock

# A causal loss needs a token and a next one.
MIN_TOKENS = 2
# A blank line tells the model that another text begins.
SEPARATOR = "\n\n"
# Keep the tokens of this many texts: some 30 MB for texts of 1000 tokens.
_TOKENIZED_TEXTS = 4096
_STAGES = ("embed", "search", "select", "tokenize")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Support:
    """The texts that a model is trained on for a prompt, largest weight first.

    Attributes:
        indices: positions in the datastore.
        weights: the convex weights; "knn" and "random" give equal ones.
        counts: optimizer steps for each text. The sum is n_select, or less if the method takes one
            step per text and the pool has fewer texts. "hullft" may leave a text without a step,
            even a heavy one, to keep the mean over the steps near the prompt.
        residual: distance from the prompt's embedding to the weighted mean; its length without
            texts.
        gap: Frank-Wolfe gap over the pool.
        input_ids: the tokens of each text, cut to the model's context.
        seconds: wall-clock time by stage, as in `AdaptationReport`.
        context_indices: positions of the texts that stand before the prompt, nearest last.
        context_ids: the tokens of each of those.
        expert_indices: the experts to merge, largest weight first.
        expert_weights: their convex weights.
    """

    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    input_ids: list[list[int]] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(_STAGES, 0.0), compare=False
    )
    context_indices: list[int] = field(default_factory=list)
    context_ids: list[list[int]] = field(default_factory=list)
    expert_indices: list[int] = field(default_factory=list)
    expert_weights: list[float] = field(default_factory=list)


@dataclass(eq=False, repr=False)
class SupportSelector:
    """Finds the support of prompts in a datastore, with the settings of `TestTimeFinetuner`.

    A text to train on is cut to ``max_length`` tokens; ``window`` is how many the model reads at
    once. ``weigh`` returns the experts of each embedded prompt [B, dim] and their weights.
    """

    store: Store
    embedder: Embedder
    tokenizer: "PreTrainedTokenizerBase"
    n_select: int
    method: SelectionMethod
    pool_size: int
    max_length: int
    context: int
    window: int
    weigh: Callable[[Tensor], list[tuple[list[int], list[float]]]]

    def __post_init__(self) -> None:
        # Each text in the context takes a token or more.
        self.context = min(self.context, self.window)
        self._tokens = lru_cache(_TOKENIZED_TEXTS)(self._tokenized_cut)
        self._tokens_before = lru_cache(_TOKENIZED_TEXTS)(self._tokenized_whole)

    def _tokenized_cut(self, index: int) -> list[int]:
        text = self.store.texts[index]
        return list(
            self.tokenizer(text, truncation=True, max_length=self.max_length)[
                "input_ids"
            ]
        )

    def _tokenized_whole(self, index: int) -> list[int]:
        text = self.store.texts[index] + SEPARATOR
        return list(
            self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        )

    def select(self, prompts: Sequence[str]) -> list[Support]:
        """The support of each prompt, as `TestTimeFinetuner.select_batch` promises it."""
        if isinstance(prompts, str):
            raise TypeError(
                "TestTimeFinetuner: prompts must be a sequence of str, got one str"
            )
        prompts = list(prompts)
        for i, prompt in enumerate(prompts):
            name = f"prompts[{i}]" if len(prompts) > 1 else "prompt"
            check_text("TestTimeFinetuner", name, prompt)
            if not prompt.strip():
                raise ValueError(
                    f"TestTimeFinetuner: {name} must hold text, got {prompt[:20]!r}"
                )
        advice = (
            "TestTimeFinetuner: out of memory, selecting texts; the model is as it was. Lower "
            f"pool_size (it is {self.pool_size}), or shorten the prompt"
        )
        with out_of_memory_explained(advice):
            return self._select(prompts) if prompts else []

    def _select(self, prompts: Sequence[str]) -> list[Support]:
        shared = StageClock(_CPU)
        with shared.of("embed"):
            vectors = encode_checked("TestTimeFinetuner", self.embedder, list(prompts))
            queries = torch.from_numpy(vectors)
        with shared.of("search"):
            sought = max(self.pool_size, self.context)
            _, nearest = self.store.search(queries, min(sought, len(self.store)))
        candidates = nearest[:, : self.pool_size]
        with shared.of("select"):
            chosen = self._choose(candidates, queries)
            experts = self.weigh(queries)
        supports = []
        for i, prompt in enumerate(prompts):
            whose = f" of prompts[{i}]" if len(prompts) > 1 else ""
            own = StageClock(_CPU)
            support = self._tokenized(chosen[i], candidates[i], queries[i], own, whose)
            with own.of("tokenize"):
                before, ids = self._texts_before(prompt, nearest[i].tolist())
            merged, weights = experts[i]
            found = replace(support, expert_indices=merged, expert_weights=weights)
            spent = {
                s: shared.seconds(s) / len(prompts) + own.seconds(s) for s in _STAGES
            }
            found = replace(
                found, context_indices=before, context_ids=ids, seconds=spent
            )
            supports.append(found)
        return supports

    def _texts_before(
        self, prompt: str, nearest: list[int]
    ) -> tuple[list[int], list[list[int]]]:
        """Positions and tokens of the nearest texts that fit before the prompt, nearest last."""
        if not self.context:
            return [], []
        tokens, opening = opened_tokens(self.tokenizer, prompt)
        room = prefix_room(self.window, len(tokens), opening)
        # Lazy: a text beyond the last that fits is not read.
        texts = fitting(map(self._tokens_before, nearest[: self.context]), room)
        return nearest[: len(texts)][::-1], texts[::-1]

    def _tokenized(
        self,
        support: Support,
        candidates: Tensor,
        query: Tensor,
        clock: StageClock,
        whose: str,
    ) -> Support:
        """The support with its tokens, chosen again without texts that are too short."""
        while True:
            with clock.of("tokenize"):
                input_ids = [list(self._tokens(i)) for i in support.indices]
            read = zip(support.indices, input_ids, strict=True)
            short = [index for index, tokens in read if len(tokens) < MIN_TOKENS]
            if not short:
                break
            left_out = torch.tensor(short, device=candidates.device)
            candidates = candidates[~torch.isin(candidates, left_out)]
            with clock.of("select"):
                [support] = self._choose(candidates[None], query[None], whose)
        if (pool := len(candidates)) < self.n_select:
            steps, name = (
                steps_of(self.method, self.n_select, pool),
                method_name(self.method),
            )
            taken = (
                f"{steps} steps, one on each"
                if steps < self.n_select
                else "all steps on these"
            )
            warnings.warn(
                "TestTimeFinetuner: the pool has fewer texts to train on than n_select, "
                f"{pool} of {self.n_select} (pool_size is {self.pool_size}): method {name!r} "
                f"takes {taken}",
                stacklevel=2,
            )
        return replace(support, input_ids=input_ids)

    def _choose(
        self, candidates: Tensor, queries: Tensor, whose: str = ""
    ) -> list[Support]:
        """A support for each row, still without tokens. ``whose`` names the pool in an error."""
        if not self.n_select:
            return [Support([], [], [], float(query.norm()), 0.0) for query in queries]
        pool = candidates.shape[1]
        if not pool:
            raise ValueError(
                f"TestTimeFinetuner: the pool{whose} must have a text of {MIN_TOKENS} tokens or "
                "more"
            )
        steps = steps_of(self.method, self.n_select, pool)
        batch = self.method(self.store.embeddings, candidates, queries, steps)
        method = f"TestTimeFinetuner: method {method_name(self.method)}"
        if not isinstance(batch, hullft_ops.Selection):
            raise TypeError(
                f"{method} must return a Selection, got {type(batch).__name__}"
            )
        supports = []
        for i, row in enumerate(candidates):
            size = int(batch.support_size[i])
            indices, counts = batch.indices[i, :size], batch.counts[i, :size].tolist()
            positions = indices.tolist()
            if len(set(positions)) < size or not all(
                0 <= index < pool for index in positions
            ):
                raise ValueError(
                    f"{method} must choose different candidates of 0..{pool - 1}, got {positions}"
                )
            if sum(counts) != steps or min(counts, default=0) < 0:
                raise ValueError(
                    f"{method} must give counts that are not negative and sum to {steps}, got "
                    f"{counts}"
                )
            weights, distance = (
                batch.weights[i, :size].tolist(),
                float(batch.residual[i]),
            )
            found = (
                row[indices].tolist(),
                weights,
                counts,
                distance,
                float(batch.gap[i]),
            )
            supports.append(Support(*found))
        return supports
