"""What a prompt's neighbours say next, mixed into the model's predictions."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import chain, pairwise, takewhile

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
# The number of an n-gram that does not occur.
_ABSENT = -1


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
            place = len(self.tokens)
            self.tokens.append(token)
            for suffixes in self._suffixes:
                suffixes.follow(token, place)
            self._suffixes[0].enter((0, 0), (token, token))
            half = 1
            for shorter, longer in pairwise(self._suffixes):
                longer.enter(shorter.at(place - half), shorter.at(place))
                half *= 2

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
            here, near = suffixes.continued_at()
            if here is not None:
                return self.tokens[here : here + length], 2**number
            if near is not None:
                tokens = self._neighbours[near : near + length].tolist()
                return [*takewhile(_BOUNDARY.__ne__, tokens)], 2**number
        return [], 0


class _Table:
    """What follows the n-grams of one length in the neighbours.

    An n-gram is a pair of the numbers of its halves, and its own number is the pair's rank.

    Args:
        pairs: of each occurrence, as one integer.
        stride: the left number's factor in ``pairs``.
        places: where the token stands that follows each occurrence.
        tokens: the neighbours'.

    Attributes:
        numbers: of each occurrence.
    """

    def __init__(
        self, pairs: np.ndarray, stride: int, places: np.ndarray, tokens: np.ndarray
    ) -> None:
        self._stride = stride
        self._pairs, self.numbers = np.unique(pairs, return_inverse=True)
        vocabulary = int(tokens.max(initial=0)) + 1
        continued = self.numbers * vocabulary + tokens[places]
        continued, first, self._counts = np.unique(
            continued, return_index=True, return_counts=True
        )
        self._tokens = continued % vocabulary
        self._places = places[first]
        numbers = np.arange(len(self._pairs) + 1)
        self._starts = np.searchsorted(continued // vocabulary, numbers)

    def __len__(self) -> int:
        return len(self._pairs)

    def number(self, left: int, right: int) -> int:
        """The number of the n-gram with these halves."""
        pair = left * self._stride + right
        number = int(self._pairs.searchsorted(pair))
        occurs = number < len(self._pairs) and self._pairs[number] == pair
        return number if occurs else _ABSENT

    def followers(self, number: int) -> dict[int, int]:
        """How often each token follows an n-gram."""
        follow = slice(self._starts[number], self._starts[number + 1])
        tokens, counts = self._tokens[follow].tolist(), self._counts[follow].tolist()
        return dict(zip(tokens, counts, strict=True))

    def most_frequent(self, number: int) -> int:
        """Where the token stands that follows an n-gram most often."""
        start, end = self._starts[number : number + 2]
        return int(self._places[start + self._counts[start:end].argmax()])


class _Suffixes:
    """The suffixes of one length of a growing text: what follows them, near it and within it."""

    def __init__(self, table: _Table) -> None:
        self._table = table
        # By place in the text, the n-gram that ends there: its number here, and in the table.
        self._ending: list[tuple[int, int]] = []
        self._numbers: dict[tuple[int, int], int] = {}
        self._counts: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._latest: dict[int, int] = {}

    def at(self, place: int) -> tuple[int, int]:
        return self._ending[place] if place >= 0 else (_ABSENT, _ABSENT)

    def follow(self, token: int, place: int) -> None:
        """A token follows what ends before its place."""
        here, _ = self.at(place - 1)
        if here != _ABSENT:
            self._counts[here][token] += _IN_TEXT
            self._latest[here] = place

    def enter(self, left: tuple[int, int], right: tuple[int, int]) -> None:
        """The n-gram with these halves ends at the next place."""
        here = near = _ABSENT
        if left[0] != _ABSENT:
            pair = left[0], right[0]
            here = self._numbers.setdefault(pair, len(self._numbers))
        if left[1] != _ABSENT and right[1] != _ABSENT:
            near = self._table.number(left[1], right[1])
        self._ending.append((here, near))

    def followers(self) -> Mapping[int, int]:
        """How much each token counts that follows the last suffix."""
        here, near = self.at(len(self._ending) - 1)
        counts: Mapping[int, int] = self._counts.get(here, {})
        if near == _ABSENT:
            return counts
        merged = self._table.followers(near)
        for token, count in counts.items():
            merged[token] = merged.get(token, 0) + count
        return merged

    def continued_at(self) -> tuple[int | None, int | None]:
        """Where the last suffix goes on: after its latest occurrence in the text, and most often
        in the neighbours."""
        here, near = self.at(len(self._ending) - 1)
        often = None if near == _ABSENT else self._table.most_frequent(near)
        return self._latest.get(here), often


def _tables(tokens: np.ndarray, count: int) -> Iterator[_Table]:
    """Those of the n-grams of 1, 2, 4, ... tokens."""
    is_followed = (tokens[:-1] != _BOUNDARY) & (tokens[1:] != _BOUNDARY)
    ends = np.flatnonzero(is_followed)
    pairs, stride, half = tokens[ends].astype(np.int64), 1, 1
    for _ in range(count):
        table = _Table(pairs, stride, ends + 1, tokens)
        yield table
        numbers = np.full(len(tokens), _ABSENT)
        numbers[ends] = table.numbers
        ends = ends[ends >= half]
        ends = ends[numbers[ends - half] != _ABSENT]
        pairs, stride = len(table) * numbers[ends - half] + numbers[ends], len(table)
        half *= 2


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
