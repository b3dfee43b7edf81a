"""What a prompt's neighbours say next, mixed into the model's predictions."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import chain, takewhile

import numpy as np
import torch
from torch import Tensor

# Weights of what follows the last 1, 2, 4, ... tokens, fitted to answers of SmolLM2 on code,
# documentation and C: alone, behind retrieved passages, and with an adapter.
WEIGHTS = (0.02, 0.07, 0.24, 0.4, 0.68, 0.58)
# Factor of the weights while the model writes: copies make long matches, and so reinforce
# themselves.
_WRITING = 0.5
# How often an occurrence in the text itself counts, fitted with the weights.
_IN_TEXT = 8
# Stands before each text, and equals no token.
_BOUNDARY = -1
# N-grams are told apart by the polynomial of their tokens at this point, modulo 2^64. That two of a
# million agree has a chance of 1 to 10^7.
_POINT = 0x9E3779B97F4A7C15
_MODULUS = 2**64


class Ngrams:
    """The n-grams of some texts, which say what comes next.

    Take the last 1, 2, 4, ... tokens of a text in turn. Where they occur in these texts or earlier
    in the text, with ``q`` for how often each token came next there, the probabilities ``p`` become
    ``(1 - w) p + w q``. The weight ``w`` is that of the number of tokens, times
    ``sqrt(1 - max p)`` of the model's own ``p``: the surer the model is, the less n-grams count.
    An occurrence in the text itself counts eight times.

    This is the interpolation of Jelinek and Mercer with the language model at its base. Liu et al.,
    *Infini-gram*, arXiv:2401.17377, and Grave et al., *Improving Neural Language Models with a
    Continuous Cache*, arXiv:1612.04426, mix models in the same way.

    Args:
        texts: the tokens of each.
        weights: of what follows the last 1, 2, 4, ... tokens, from 0 to below 1.
    """

    def __init__(
        self, texts: Sequence[Sequence[int]], weights: Sequence[float] = WEIGHTS
    ) -> None:
        self._weights = weights
        self._tokens = _joined(texts)
        self._tables = list(_tables(self._tokens, len(weights)))

    def scaled(self, factor: float) -> "Ngrams":
        """The same n-grams at ``factor`` of the weights."""
        other = copy(self)
        other._weights = [factor * weight for weight in self._weights]
        return other

    def while_writing(self) -> "Ngrams":
        """The same n-grams at half of the weights."""
        return self.scaled(_WRITING)

    def after(self, text: Sequence[int]) -> "NgramText":
        """What comes next after the tokens of a text, which may grow."""
        return NgramText(self._tokens, self._tables, self._weights, text)


class NgramText:
    """A text that grows, and what comes next by its neighbours' n-grams and its own.

    `Ngrams.after` makes one. Each token is entered once: a prediction takes as long behind a long
    text as behind a short one.
    """

    def __init__(
        self,
        neighbours: np.ndarray,
        tables: "Sequence[_Table]",
        weights: Sequence[float],
        text: Sequence[int],
    ) -> None:
        self.tokens: list[int] = []
        self._neighbours = neighbours
        self._weights = weights
        self._suffixes = [_Suffixes(table) for table in tables]
        self.extend(text)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            place, size, number = len(self.tokens), 1, token
            self.tokens.append(token)
            for suffixes in self._suffixes:
                suffixes.enter(token, number if size <= place + 1 else None)
                left = suffixes.numbers[place - size] if size <= place else None
                number = (_factor(size) * (left or 0) + number) % _MODULUS
                size *= 2

    def followers(self) -> Iterator[Mapping[int, int]]:
        """How much each token counts that came next after the last 1, 2, 4, ... tokens, while these
        occur."""
        for suffixes in self._suffixes:
            counts = suffixes.followers()
            if not counts:
                return
            yield counts

    def mixed(self, logits: Tensor) -> Tensor:
        """The logarithms of the mixture's probabilities.

        Args:
            logits: ``[vocabulary]``, the model's for the next token. Tokens at -inf stay there.

        Returns:
            A tensor of the same shape.
        """
        mixture = logits.log_softmax(dim=-1)
        doubt = math.sqrt(max(0.0, 1 - math.exp(mixture.max().item())))
        rest = 1.0
        added: dict[int, float] = {}
        # What is mixed in last keeps its weight.
        for weight, counts in reversed(
            [*zip(self._weights, self.followers(), strict=False)]
        ):
            share = rest * doubt * weight / sum(counts.values())
            for token, count in counts.items():
                added[token] = added.get(token, 0.0) + share * count
            rest *= 1 - doubt * weight
        if rest < 1:
            _mix_in(mixture, rest, added)
        return mixture

    def draft(self, length: int) -> tuple[list[int], int]:
        """Up to ``length`` tokens that may come next: those behind the longest n-gram that occurs.

        Returns:
            The tokens, and how many tokens the n-gram has: a power of 2, or 0 if none occurs.
        """
        for number, suffixes in reversed([*enumerate(self._suffixes)]):
            place = suffixes.latest.get(suffixes.number)
            if place is not None:
                return self.tokens[place : place + length], 2**number
            place = suffixes.most_frequent()
            if place is not None:
                tokens = self._neighbours[place : place + length].tolist()
                return [*takewhile(_BOUNDARY.__ne__, tokens)], 2**number
        return [], 0


@dataclass(frozen=True)
class _Table:
    """What follows the n-grams of one length in the neighbours: a row for each n-gram and token.

    Attributes:
        numbers: the n-grams', sorted.
        tokens: which follow.
        counts: how often.
        places: where first.
    """

    numbers: np.ndarray
    tokens: np.ndarray
    counts: np.ndarray
    places: np.ndarray

    def rows(self, number: int) -> slice:
        """Those of an n-gram."""
        start, end = (
            int(self.numbers.searchsorted(np.uint64(number), side))
            for side in ("left", "right")
        )
        return slice(start, end)


@dataclass
class _Suffixes:
    """The suffixes of one length of a growing text: what follows them, near it and within it.

    Attributes:
        table: the neighbours'.
        numbers: of the n-gram that ends at each place; None where the text is shorter.
        counts: how much each token counts that follows an n-gram in the text.
        latest: where the token stands that followed an n-gram last.
    """

    table: _Table
    numbers: list[int | None] = field(default_factory=list)
    counts: defaultdict[int | None, Counter[int]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    latest: dict[int | None, int] = field(default_factory=dict)

    @property
    def number(self) -> int | None:
        """The last suffix's."""
        return self.numbers[-1] if self.numbers else None

    def enter(self, token: int, number: int | None) -> None:
        """A token follows the last suffix, and ends the one with this number."""
        if self.number is not None:
            self.counts[self.number][token] += _IN_TEXT
            self.latest[self.number] = len(self.numbers)
        self.numbers.append(number)

    def rows(self) -> slice:
        """The table's for the last suffix."""
        return slice(0, 0) if self.number is None else self.table.rows(self.number)

    def followers(self) -> Mapping[int, int]:
        """How much each token counts that follows the last suffix."""
        rows = self.rows()
        tokens = self.table.tokens[rows].tolist()
        counts = dict(zip(tokens, self.table.counts[rows].tolist(), strict=True))
        for token, count in self.counts.get(self.number, {}).items():
            counts[token] = counts.get(token, 0) + count
        return counts

    def most_frequent(self) -> int | None:
        """Where the token stands that follows the last suffix most often in the neighbours."""
        rows = self.rows()
        if rows.start == rows.stop:
            return None
        most = self.table.counts[rows].argmax()
        return int(self.table.places[rows][most])


def _factor(size: int) -> int:
    return pow(_POINT, size, _MODULUS)


def _tables(tokens: np.ndarray, count: int) -> Iterator[_Table]:
    """Those of the n-grams of 1, 2, 4, ... tokens."""
    places = np.arange(len(tokens))
    # How many tokens of its text end at each.
    sizes = places - np.maximum.accumulate(np.where(tokens == _BOUNDARY, places, 0))
    numbers, size = tokens.astype(np.uint64), 1
    for _ in range(count):
        ends = np.flatnonzero((sizes[:-1] >= size) & (tokens[1:] != _BOUNDARY))
        yield _table(numbers[ends], tokens, ends + 1)
        numbers[size:] += np.uint64(_factor(size)) * numbers[:-size]
        size *= 2


def _table(numbers: np.ndarray, tokens: np.ndarray, places: np.ndarray) -> _Table:
    """Count what stands at places, behind n-grams with these numbers."""
    order = np.lexsort((tokens[places], numbers))
    numbers, places = numbers[order], places[order]
    tokens = tokens[places]
    changes = (numbers[1:] != numbers[:-1]) | (tokens[1:] != tokens[:-1])
    first = np.flatnonzero(np.append(len(places) > 0, changes))
    counts = np.diff(np.append(first, len(places)))
    return _Table(numbers[first], tokens[first], counts, places[first])


def _mix_in(mixture: Tensor, rest: float, added: Mapping[int, float]) -> None:
    """Scale a distribution ``[vocabulary]`` by ``rest`` and add to it; ``mixture`` has its
    logarithms, and changes in place."""
    mixture += math.log(rest)
    tokens = torch.tensor([*added], device=mixture.device)
    before = mixture[tokens]
    logarithms = before.new_tensor([*added.values()]).log()
    is_forbidden = before.isneginf()
    mixture[tokens] = torch.logaddexp(before, logarithms).masked_fill(
        is_forbidden, -math.inf
    )


def _joined(texts: Sequence[Sequence[int]]) -> np.ndarray:
    tokens = chain.from_iterable((_BOUNDARY, *text) for text in texts)
    return np.fromiter(tokens, dtype=np.int32)
