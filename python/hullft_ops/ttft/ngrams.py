"""What a prompt's neighbours say next, mixed into the model's predictions."""

import math
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import chain

import numpy as np
import torch
from torch import Tensor

# Of what follows the last 1, 2, 4, ... tokens. They were fitted to answers of SmolLM2 on code,
# documentation and C: alone, behind retrieved passages, and with an adapter.
WEIGHTS = (0.02, 0.07, 0.24, 0.4, 0.68, 0.58)
# Of these while the model writes. What it copies makes long matches, which at the whole weights
# keep the copy going where the text should turn.
_WRITING = 0.5
# How often an occurrence in the text itself counts, fitted with the weights.
_IN_TEXT = 8
# Stands before each text, and equals no token.
_BOUNDARY = -1


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
        self._tokens = _joined(texts)
        self._weights = weights

    def scaled(self, factor: float) -> "Ngrams":
        """The same n-grams at ``factor`` of the weights."""
        other = copy(self)
        other._weights = [factor * weight for weight in self._weights]
        return other

    def followers(self, text: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What came next after the last 1, 2, 4, ... tokens of ``text``, while they occur.

        Yields:
            The different tokens, int32 ``[n]``, and the share of each, float64 ``[n]``.
        """
        if not text:
            return
        tokens = np.concatenate([self._tokens, _joined([text])])
        start = len(self._tokens)
        end = len(tokens) - 1
        is_followed = tokens[1:] != _BOUNDARY
        ends = np.flatnonzero(is_followed & (tokens[:-1] == tokens[end]))
        length = 1
        for _ in self._weights:
            if not len(ends):
                return
            following, kinds = np.unique(tokens[ends + 1], return_inverse=True)
            counts = np.bincount(kinds, weights=np.where(ends < start, 1, _IN_TEXT))
            yield following, counts / counts.sum()
            for offset in range(length, 2 * length):
                if tokens[end - offset] == _BOUNDARY:
                    return
                ends = ends[tokens[ends - offset] == tokens[end - offset]]
            length *= 2

    def mixed(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """The logarithms of the mixture's probabilities.

        Args:
            logits: ``[len(texts), vocabulary]``, the model's. Tokens at -inf stay there.
            texts: what stands before each prediction.

        Returns:
            A tensor of the same shape.
        """
        mixtures = logits.log_softmax(dim=-1)
        doubts = (1 - mixtures.amax(dim=-1).exp()).clamp(min=0).sqrt()
        for mixture, doubt, text in zip(mixtures, doubts, texts, strict=True):
            for weight, (tokens, shares) in zip(
                self._weights, self.followers(text), strict=False
            ):
                _mix_in(mixture, weight * doubt, tokens, shares)
        return mixtures


class NgramProcessor:
    """A logits processor for ``model.generate``, which mixes n-grams in at half of their weights.

    Args:
        ngrams: what to mix in for each prompt of the batch; None for nothing.
        lengths: how many tokens at the end of what the model reads are the prompt's.
    """

    def __init__(self, ngrams: Sequence[Ngrams | None], lengths: Sequence[int]) -> None:
        self._ngrams = [each.scaled(_WRITING) if each else None for each in ngrams]
        self._lengths = lengths
        self._read: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores of the next token, a row for each text; a prompt's beams are consecutive."""
        if self._read is None:
            self._read = input_ids.shape[1]
        beams = len(scores) // len(self._ngrams)
        mixtures = []
        for number, ids in enumerate(input_ids.tolist()):
            row = scores[number : number + 1]
            ngrams = self._ngrams[number // beams]
            if ngrams is not None:
                start = self._read - self._lengths[number // beams]
                row = ngrams.mixed(row, [ids[start:]])
            mixtures.append(row)
        return torch.cat(mixtures)


def _mix_in(
    mixture: Tensor, weight: Tensor, tokens: np.ndarray, shares: np.ndarray
) -> None:
    """Change the logarithms ``mixture`` of a distribution ``[vocabulary]`` in place."""
    mixture += torch.log1p(-weight)
    following = torch.from_numpy(tokens).to(mixture.device)
    added = (weight * torch.from_numpy(shares).to(mixture)).log()
    before = mixture[following]
    is_forbidden = before.isneginf()
    mixture[following] = torch.logaddexp(before, added).masked_fill(
        is_forbidden, -math.inf
    )


def _joined(texts: Sequence[Sequence[int]]) -> np.ndarray:
    tokens = chain.from_iterable((_BOUNDARY, *text) for text in texts)
    return np.fromiter(tokens, dtype=np.int32)
