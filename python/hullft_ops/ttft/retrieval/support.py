"""Choosing the texts to finetune on for a prompt, and the number of steps on each."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from time import perf_counter

import torch

import hullft_ops
from hullft_ops._checks import check_text
from hullft_ops.ttft.model.memory import out_of_memory_explained
from hullft_ops.ttft.retrieval.in_context import TOKENIZED_TEXTS, InContext
from hullft_ops.ttft.retrieval.methods import SelectionMethod, method_name, steps_of
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.embedding import Embedder, encode_checked

# A causal loss needs a token and a next one.
MIN_TOKENS = 2


@dataclass
class Seconds:
    """Wall-clock seconds spent in each stage for one prompt."""

    embed: float = 0.0
    search: float = 0.0
    select: float = 0.0
    tokenize: float = 0.0

    @contextmanager
    def of(self, stage: str, *, share: int = 1) -> Iterator[None]:
        """Add the time of the body, or one of ``share`` equal parts of it, to ``stage``."""
        start = perf_counter()
        yield
        setattr(self, stage, getattr(self, stage) + (perf_counter() - start) / share)


@dataclass(frozen=True)
class Support:
    """The texts that a model is trained on for a prompt, largest weight first.

    Attributes:
        indices: positions in the datastore.
        weights: the convex weights; "knn" and "random" give equal ones.
        counts: optimizer steps for each text. The sum is n_select, or less if the method takes one
            step per text and the pool has fewer texts. Without steps there are no texts.
        residual: distance from the prompt's embedding to the weighted mean; its length without
            texts.
        gap: Frank-Wolfe gap over the pool.
        input_ids: the tokens of each text, cut to the model's context.
        seconds: time spent so far.
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
    input_ids: list[list[int]]
    seconds: Seconds = field(compare=False)
    context_indices: list[int] = field(default_factory=list)
    context_ids: list[list[int]] = field(default_factory=list)
    expert_indices: list[int] = field(default_factory=list)
    expert_weights: list[float] = field(default_factory=list)


@dataclass(eq=False, repr=False)
class SupportSelector:
    """Finds the support of prompts in a datastore, with the settings of `TestTimeFinetuner`.

    ``tokenize`` returns a text's tokens, cut to the model's context; those of recent texts are
    cached. ``weigh`` returns the experts of each embedded prompt [B, dim] and their weights.
    """

    store: Store
    embedder: Embedder
    tokenize: Callable[[str], list[int]]
    n_select: int
    method: SelectionMethod
    pool_size: int
    in_context: InContext
    weigh: Callable[[torch.Tensor], list[tuple[list[int], list[float]]]]

    def __post_init__(self) -> None:
        store, tokenize = self.store, self.tokenize
        self._tokens = lru_cache(TOKENIZED_TEXTS)(lambda i: tuple(tokenize(store.texts[i])))

    def select(self, prompts: Sequence[str]) -> list[Support]:
        """The support of each prompt, as `TestTimeFinetuner.select_batch` promises it."""
        if isinstance(prompts, str):
            raise TypeError("TestTimeFinetuner: prompts must be a sequence of str, got one str")
        prompts = list(prompts)
        for i, prompt in enumerate(prompts):
            name = f"prompts[{i}]" if len(prompts) > 1 else "prompt"
            check_text("TestTimeFinetuner", name, prompt)
            if not prompt.strip():
                raise ValueError(f"TestTimeFinetuner: {name} must hold text, got {prompt[:20]!r}")
        advice = (
            "TestTimeFinetuner: out of memory, selecting texts; the model is as it was. Lower "
            f"pool_size (it is {self.pool_size}), or shorten the prompt"
        )
        with out_of_memory_explained(advice):
            return self._select(prompts) if prompts else []

    def _select(self, prompts: Sequence[str]) -> list[Support]:
        share, shared = len(prompts), Seconds()
        with shared.of("embed", share=share):
            vectors = encode_checked("TestTimeFinetuner", self.embedder, list(prompts))
            queries = torch.from_numpy(vectors)
        with shared.of("search", share=share):
            sought = max(self.pool_size, self.in_context.count)
            _, nearest = self.store.search(queries, min(sought, len(self.store)))
        candidates = nearest[:, : self.pool_size]
        with shared.of("select", share=share):
            selections = self._choose(candidates, queries) if self.n_select else [None] * share
            experts = self.weigh(queries)
        supports = []
        for i, prompt in enumerate(prompts):
            seconds, whose = replace(shared), f" of prompts[{i}]" if share > 1 else ""
            support = self._support(candidates[i], queries[i], selections[i], seconds, whose)
            with seconds.of("tokenize"):
                indices, ids = self.in_context.pick(prompt, nearest[i].tolist())
            support = replace(support, context_indices=indices, context_ids=ids)
            chosen, weights = experts[i]
            supports.append(replace(support, expert_indices=chosen, expert_weights=weights))
        return supports

    def _support(
        self,
        candidates: torch.Tensor,
        query: torch.Tensor,
        selection: hullft_ops.Selection | None,
        seconds: Seconds,
        whose: str,
    ) -> Support:
        if selection is None:
            return Support([], [], [], float(query.norm()), 0.0, [], seconds)
        while True:
            size = int(selection.support_size)
            chosen = candidates[selection.indices[:size]]
            with seconds.of("tokenize"):
                input_ids = [list(self._tokens(i)) for i in chosen.tolist()]
            trainable = torch.tensor(
                [len(tokens) >= MIN_TOKENS for tokens in input_ids], device=candidates.device
            )
            if trainable.all():
                break
            candidates = candidates[~torch.isin(candidates, chosen[~trainable])]
            with seconds.of("select"):
                [selection] = self._choose(candidates[None], query[None], whose)
        if (pool := len(candidates)) < self.n_select:
            steps, name = steps_of(self.method, self.n_select, pool), method_name(self.method)
            taken = f"{steps} steps, one on each" if steps < self.n_select else "all steps on these"
            warnings.warn(
                "TestTimeFinetuner: the pool has fewer texts to train on than n_select, "
                f"{pool} of {self.n_select} (pool_size is {self.pool_size}): method {name!r} "
                f"takes {taken}",
                stacklevel=2,
            )
        return Support(
            indices=chosen.tolist(),
            weights=selection.weights[:size].tolist(),
            counts=selection.counts[:size].tolist(),
            residual=float(selection.residual),
            gap=float(selection.gap),
            input_ids=input_ids,
            seconds=seconds,
        )

    def _choose(
        self, candidates: torch.Tensor, queries: torch.Tensor, whose: str = ""
    ) -> list[hullft_ops.Selection]:
        """One selection for each row. ``whose`` names the pool in an error."""
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
            raise TypeError(f"{method} must return a Selection, got {type(batch).__name__}")
        selections = [hullft_ops.Selection(*(t[i] for t in batch)) for i in range(len(queries))]
        for selection in selections:
            _check_selection(method, selection, pool, steps)
        return selections


def _check_selection(method: str, selection: hullft_ops.Selection, pool: int, steps: int) -> None:
    size = int(selection.support_size)
    indices, counts = selection.indices[:size].tolist(), selection.counts[:size].tolist()
    if len(set(indices)) < size or not all(0 <= index < pool for index in indices):
        raise ValueError(
            f"{method} must choose different candidates of 0..{pool - 1}, got {indices}"
        )
    if sum(counts) != steps or min(counts, default=0) < 0:
        raise ValueError(
            f"{method} must give counts that are not negative and sum to {steps}, got {counts}"
        )
