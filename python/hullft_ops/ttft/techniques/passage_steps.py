"""Optimizer steps on passages that are selected among the prompt's neighbours."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

import hullft_ops
from hullft_ops import Selection
from hullft_ops._checks import Variant
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.search import Neighbours, PoolOptions
from hullft_ops.ttft.techniques.technique import (
    Prepared,
    Technique,
    stated,
)
from hullft_ops.ttft.training import (
    MAX_STEPS,
    MIN_TOKENS,
    Pass,
    Training,
    TrainingOptions,
    passes_of,
)
from hullft_ops.ttft.validation import options_class

MethodName = Literal["hullft", "sift", "knn"]


SelectionMethod = Callable[[Tensor, Tensor, int], Selection]
"""Selects passages for a prompt: a function of its pool float32 ``[K, d]``, the embeddings of the
passages near it, nearest first, of its own embedding float32 ``[d]``, and of the number of
optimizer steps. It returns what `hullft_ops.fw_select` does: ``indices`` are different positions in
the pool, and ``counts`` sum to the number of steps."""


@options_class
class PassageStepOptions(TrainingOptions, PoolOptions):
    """How to select passages, and how many steps to take on them."""

    method: MethodName | SelectionMethod = "hullft"
    """How to select the passages for n_select steps: hullft, sift, knn, or in Python a
    `SelectionMethod`."""

    n_select: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Optimizer steps on selected passages for each prompt; 0 for none."""

    order: Literal["balanced", "grouped"] = "balanced"
    """balanced for passes in turns, so that at any time each passage has about its share of the
    steps, or grouped for all passes on a passage in a row, as in the paper."""

    variant: Variant = "vanilla"
    """Frank-Wolfe variant of hullft."""

    noise: PositiveFloat = 0.01
    """Observation noise of sift."""


@dataclass(frozen=True)
class Support:
    """The passages that a model is trained on for a prompt, largest weight first.

    Attributes:
        indices: positions in the datastore.
        weights: the convex weights; "knn" gives equal ones.
        counts: optimizer steps on each passage. Their sum is less than was asked for if the method
            is "knn" and the pool is smaller, or a passage has no next token to train on. "hullft"
            may leave a passage without a step, even a heavy one, to keep the mean over the steps
            near the prompt.
        residual: distance from the prompt's embedding to the weighted mean; its norm without
            passages.
        gap: Frank-Wolfe gap over the pool.
        input_ids: the tokens of each passage, cut to ``max_length``.
        steps: optimizer steps taken on each; empty before training.
    """

    indices: list[int]
    weights: list[float]
    counts: list[int]
    residual: float
    gap: float
    input_ids: list[list[int]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


class PassageSteps(Technique):
    """Optimizer steps on passages that a method selects from the pool."""

    switch = "n_select"

    def __init__(self, options: PassageStepOptions) -> None:
        self.n_neighbours = options.pool_size
        self._options = options
        idle = {
            "hullft": ("noise",),
            "sift": ("variant",),
            # Each passage has one step.
            "knn": ("noise", "order", "refresh", "variant"),
        }
        values = stated(options, PassageStepOptions)
        name = values["method"]
        for option in idle.get(name, ()):
            del values[option]
        self.settings = values

    def prepare(
        self, neighbours: Neighbours, language_model: LanguageModel
    ) -> Prepared:
        """Select passages for the question, and give the steps on them an order."""
        options = self._options
        support = self.select(neighbours, language_model)

        def train(training: Training) -> Support:
            passes = schedule(support, options.refresh, options.order)
            steps = Counter[int | None]()
            for each in training.take(passes):
                steps[each.position] += each.repeats
            return replace(support, steps=[steps[index] for index in support.indices])

        return Prepared(change_weights=train)

    def select(self, neighbours: Neighbours, language_model: LanguageModel) -> Support:
        """The passages to train on."""
        options = self._options
        if neighbours.query is None:
            raise ValueError(
                f"n_select is {options.n_select}, and the search is by words: passages to train on "
                "are selected by embeddings; take search dense or hybrid, or n_select 0"
            )
        positions = list(neighbours.positions[: options.pool_size])
        pool = neighbours.store.vectors(torch.tensor(positions))
        selection = self._selected(pool, neighbours.query)
        size = int(selection.support_size)
        indices = [positions[i] for i in selection.indices[:size].tolist()]
        cut = options.max_length or language_model.window
        input_ids = [
            language_model.passage_ids(
                neighbours.store.texts[index], with_special=True
            )[:cut]
            for index in indices
        ]
        counts = [
            count if len(ids) >= MIN_TOKENS else 0
            for count, ids in zip(
                selection.counts[:size].tolist(), input_ids, strict=True
            )
        ]
        return Support(
            indices=indices,
            weights=selection.weights[:size].tolist(),
            counts=counts,
            residual=float(selection.residual),
            gap=float(selection.gap),
            input_ids=input_ids,
        )

    def _selected(self, pool: Tensor, query: Tensor) -> Selection:
        """What the method selects from a pool ``[K, d]`` for a query ``[d]``."""
        options, count = self._options, self._options.n_select
        if options.method == "hullft":
            return hullft_ops.fw_select(pool, query, count, variant=options.variant)
        if options.method == "sift":
            return hullft_ops.sift_select(
                pool, query, count, noise=options.noise
            ).selection
        if options.method == "knn":
            # One step on each passage, so fewer steps on a pool of fewer passages.
            return hullft_ops.knn_select(pool, query, min(count, len(pool)))
        return options.method(pool, query, count)


def schedule(support: Support, refresh: int, order: str) -> list[Pass]:
    """The passes on a support, one for every ``refresh`` steps on a passage.

    In the order "grouped" the passes on a passage follow one another, as in arXiv:2605.30337.
    """
    passages = zip(support.input_ids, support.counts, support.indices, strict=True)
    of_each = [
        passes_of(ids, count, refresh, position) for ids, count, position in passages
    ]
    if order == "grouped":
        return [each for passes in of_each for each in passes]
    waiting = [iter(passes) for passes in of_each]
    return [next(waiting[i]) for i in _balanced(np.array(support.counts), refresh)]


def _balanced(counts: np.ndarray, refresh: int) -> Iterator[int]:
    """Each pass is on the passage that then exceeds its share of the steps least.

    No passage has its first pass before one that is heavier, which stands before it: a budget may
    end the training at any pass.
    """
    done = np.zeros_like(counts)
    while (done < counts).any():
        after = np.minimum(done + refresh, counts)
        steps = done.sum() + after - done
        excess = after - steps * counts / counts.sum()
        excess[done == counts] = np.inf
        unbegun = np.flatnonzero((done == 0) & (counts > 0))
        excess[unbegun[1:]] = np.inf
        passage = int(excess.argmin())
        done[passage] = after[passage]
        yield passage
