"""N-grams: what a prompt's neighbours say next, mixed into the model's predictions."""

import math
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import chain
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.prefix import Draft, Prediction
from hullft_ops.ttft.question import Question
from hullft_ops.ttft.search import (
    Neighbours,
    PoolOptions,
    whole_runs,
    with_separator,
)
from hullft_ops.ttft.techniques.technique import Prepared, Technique, stated
from hullft_ops.ttft.validation import options_class

# Weights of what follows the last 1, 2, 4, ... tokens, fitted to answers of SmolLM2 on code,
# documentation and C: alone, after retrieved passages, and with an adapter.
WEIGHTS = (0.02, 0.07, 0.24, 0.4, 0.68, 0.58)
# Factor of the weights while the model writes: copies make long matches, and so reinforce
# themselves.
_WRITING = 0.5
# How often an occurrence in the text itself counts, fitted with the weights.
_IN_TEXT = 8
# By the length of the n-gram, how often a drafted token stood: 22 texts of SmolLM2-135M on code, C
# and documentation, after retrieved passages.
_RATES = {1: 0.45, 2: 0.45, 4: 0.7, 8: 0.9}
_RATE_OF_LONGER = 0.98
# These stand before each of the neighbours and before the text, and equal no token.
_BOUNDARY = -1
_TEXT = -2


@options_class
class NgramOptions(PoolOptions):
    """How to mix n-grams in."""

    ngrams: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How strongly to mix n-grams of the pool into the model's predictions, from 0 for no n-grams
    to 1: a factor of the weights of `hullft_ops.ttft.Ngrams`. Half of it while the model writes."""


class NgramMixture(Technique):
    """N-grams of the pool change the predictions."""

    switch = "ngrams"
    trains = False

    def __init__(self, options: NgramOptions) -> None:
        self.n_neighbours = options.pool_size
        self.settings = stated(options, NgramOptions)
        self._weights = [options.ngrams * weight for weight in WEIGHTS]

    def prepare(
        self, neighbours: Neighbours, language_model: LanguageModel
    ) -> Prepared:
        """The n-grams of the pool's passages, each with the passage that follows it."""
        store = neighbours.store
        runs = whole_runs(store, neighbours.positions[: self.n_neighbours])
        texts = [language_model.passage_ids(with_separator(store, run)) for run in runs]
        return Prepared(mixture=Ngrams(texts, self._weights))


class Ngrams:
    """The n-grams of some texts, which say what comes next.

    Take the last 1, 2, 4, ... tokens of a text in turn. Where they occur in these texts or earlier
    in the text's window, with ``q`` for how often each token came next there, the probabilities
    ``p`` become ``(1 - w) p + w q``. The weight ``w`` depends on the number of tokens, times
    ``sqrt(1 - max p)`` of the model's own ``p``: the surer the model is, the less n-grams count.
    An occurrence in the text itself counts eight times.

    This is the interpolation of Jelinek and Mercer with the language model at its base. Liu et al.,
    *Infini-gram*, arXiv:2401.17377, and Grave et al., *Improving Neural Language Models with a
    Continuous Cache*, arXiv:1612.04426, mix models in the same way.

    A prediction searches all of the texts: half a millisecond for 40,000 tokens, on one core.

    Args:
        texts: the tokens of each.
        weights: of what follows the last 1, 2, 4, ... tokens, from 0 to below 1.
    """

    def __init__(
        self, texts: Sequence[Sequence[int]], weights: Sequence[float] = WEIGHTS
    ) -> None:
        self._weights = weights
        tokens = chain.from_iterable((_BOUNDARY, *text) for text in texts)
        self._neighbours = np.fromiter(chain(tokens, [_TEXT]), dtype=np.int64)

    def while_writing(self) -> "Ngrams":
        """The same n-grams at half of the weights."""
        other = copy(self)
        other._weights = [_WRITING * weight for weight in self._weights]
        return other

    def mixed(
        self, question: Question, written: Tensor, prediction: Prediction
    ) -> Tensor:
        """The logarithms of the mixture's probabilities, ``[vocabulary]``; see `Mixture`.

        Tokens whose logits are -inf stay there.
        """
        tokens = self._before(question, written)
        mixture = prediction.logits.log_softmax(dim=-1)
        doubt = math.sqrt(max(0.0, 1 - math.exp(mixture.max().item())))
        rest = 1.0
        followers, shares = [], []
        # What is mixed in last keeps its weight.
        for weight, (_, places) in reversed(
            [*zip(self._weights, self._matches(tokens), strict=False)]
        ):
            counts = np.where(places < len(self._neighbours), 1, _IN_TEXT)
            followers.append(tokens[places])
            shares.append(rest * doubt * weight / counts.sum() * counts)
            rest *= 1 - doubt * weight
        if rest < 1:
            mixture += math.log(rest)
            _add(mixture, np.concatenate(followers), np.concatenate(shares))
        return mixture

    def draft(self, question: Question, written: Tensor, length: int) -> Draft:
        """Up to ``length`` tokens that may come next: what is after the longest n-gram that
        occurs. Its length is the draft's kind.

        They are what followed last in the text, or most often in the neighbours.
        """
        tokens = self._before(question, written)
        matches = [*self._matches(tokens)]
        if not matches:
            return Draft()
        size, places = matches[-1]
        place = places[-1]
        if place < len(self._neighbours):
            _, first, counts = np.unique(
                tokens[places], return_index=True, return_counts=True
            )
            place = places[first[counts.argmax()]]
        draft = tokens[place : place + length]
        within = draft[np.logical_and.accumulate(draft >= 0)]
        return Draft(within.tolist(), size, _RATES.get(size, _RATE_OF_LONGER))

    def _before(self, question: Question, written: Tensor) -> np.ndarray:
        """The neighbours' tokens, and the text's up to what comes next."""
        parts = question.before_cursor, written
        return np.concatenate(
            [self._neighbours, *(part.numpy(force=True) for part in parts)]
        )

    def _matches(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """1, 2, 4, ..., and the places of what followed as many last tokens, while these occur."""
        sizes = [2**number for number in range(len(self._weights))]
        places = np.flatnonzero(tokens[:-1] == tokens[-1]) + 1
        places = places[tokens[places] >= 0]
        for size in range(1, sizes[-1] + 1):
            if not len(places):
                return
            if size in sizes:
                yield size, places
            # The boundary before the text occurs once, so no match goes on across it.
            places = places[tokens[places - size - 1] == tokens[-size - 1]]


def _add(mixture: Tensor, tokens: np.ndarray, shares: np.ndarray) -> None:
    """Add the shares of tokens, which may repeat, to a distribution ``[vocabulary]``; ``mixture``
    has its logarithms, and changes in place."""
    distinct, inverse = np.unique(tokens, return_inverse=True)
    places = torch.from_numpy(distinct).to(mixture.device)
    before = mixture[places]
    added = torch.from_numpy(np.bincount(inverse, shares)).log().to(before)
    is_forbidden = before.isneginf()
    mixture[places] = torch.logaddexp(before, added).masked_fill(
        is_forbidden, -math.inf
    )
