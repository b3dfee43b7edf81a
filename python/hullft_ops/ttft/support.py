"""Choosing, for a prompt, the texts to finetune on and how many steps each gets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch

import hullft_ops
from hullft_ops.ttft.datastore import Datastore
from hullft_ops.ttft.embedding import Embedder, encode_checked

METHODS = ("hullft", "knn")
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
    def of(self, stage: str) -> Iterator[None]:
        """Add the time of the body to ``stage``."""
        start = perf_counter()
        yield
        setattr(self, stage, getattr(self, stage) + perf_counter() - start)


@dataclass(frozen=True)
class Support:
    """What a prompt is adapted on, largest weight first.

    Attributes:
        indices: positions in the datastore.
        weights: the convex weights; 1 / n_select each for "knn".
        counts: optimizer steps for each; the sum is n_select.
        residual: distance from the prompt's embedding to the weighted mean.
        gap: Frank-Wolfe gap over the pool.
        input_ids: the tokens of each, cut to the model's context.
        seconds: time spent so far.
    """

    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    input_ids: list[list[int]]
    seconds: Seconds = field(compare=False)


@dataclass(frozen=True)
class SupportSelector:
    """Finds a prompt's support in a datastore."""

    store: Datastore
    embedder: Embedder
    tokenize: Callable[[str], list[int]]
    n_select: int
    method: str
    variant: str
    pool_size: int

    def select(self, prompt: str) -> Support:
        """The support for ``prompt``.

        A text of fewer than 2 tokens cannot be trained on. Should one be chosen, it leaves the
        pool and the selection is made anew, so that the steps still add up to n_select.

        Raises:
            TypeError: prompt is not a str.
            ValueError: prompt is blank, or too few texts of the pool can be trained on.
        """
        _check_prompt(prompt)
        seconds = Seconds()
        with seconds.of("embed"):
            query = torch.from_numpy(encode_checked("TestTimeFinetuner", self.embedder, [prompt]))
        with seconds.of("search"):
            _, ids = self.store.search(query, min(self.pool_size, len(self.store)))
        candidates = ids[0]
        while True:
            self._check_pool(candidates)
            with seconds.of("select"):
                selection = self._choose(candidates, query[0])
            size = int(selection.support_size)
            chosen = candidates[selection.indices[:size]]
            with seconds.of("tokenize"):
                input_ids = [self.tokenize(self.store.texts[i]) for i in chosen.tolist()]
            trainable = torch.tensor([len(tokens) >= MIN_TOKENS for tokens in input_ids])
            if trainable.all():
                break
            candidates = candidates[~torch.isin(candidates, chosen[~trainable])]
        return Support(
            indices=chosen.tolist(),
            weights=selection.weights[:size].tolist(),
            counts=selection.counts[:size].tolist(),
            residual=float(selection.residual),
            gap=float(selection.gap),
            input_ids=input_ids,
            seconds=seconds,
        )

    def _check_pool(self, candidates: torch.Tensor) -> None:
        needed = self.n_select if self.method == "knn" else 1
        if len(candidates) < needed:
            raise ValueError(
                f"TestTimeFinetuner: the pool must have at least {needed} texts of "
                f"{MIN_TOKENS} tokens or more, got {len(candidates)}"
            )

    def _choose(self, candidates: torch.Tensor, query: torch.Tensor) -> hullft_ops.Selection:
        if self.method == "knn":
            pool = self.store.embeddings[candidates]
            return hullft_ops.knn_select(pool, query, self.n_select)
        return hullft_ops.fw_select_indexed(
            self.store.embeddings, candidates, query, self.n_select, variant=self.variant
        )


def _check_prompt(prompt: str) -> None:
    if not isinstance(prompt, str):
        raise TypeError(f"TestTimeFinetuner: prompt must be a str, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError(f"TestTimeFinetuner: prompt must hold text, got {prompt[:20]!r}")
