"""Bits per byte: how well a model predicts a text, whatever its tokenizer.

``bpb = NLL in nats / (ln 2 * bytes scored)``, after Khamis and Maalouf, arXiv:2605.30337. Two
things differ: only the bytes of scored tokens count, and long texts are scored in full.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hullft_ops._checks import check_text
from hullft_ops.ttft.errors import NonFiniteLossError, NothingToScoreError
from hullft_ops.ttft.models.hidden import HiddenStates, seen_hidden_states
from hullft_ops.ttft.question import Question
from hullft_ops.ttft.reader import Mixture, Prediction, Prefix, Reader, mixed_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class BitsPerByte:
    """A text's score. Over several texts, add up ``nll`` and ``bytes`` before dividing.

    Attributes:
        nll: negative log-likelihood of the scored tokens, in nats.
        bytes: UTF-8 bytes of the scored tokens.
        tokens: how many tokens were scored.
    """

    nll: float
    bytes: int
    tokens: int

    @property
    def value(self) -> float:
        """Bits per byte."""
        return self.nll / (math.log(2) * self.bytes)


def score_text(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    *,
    after: str = "",
    max_length: int | None = None,
) -> BitsPerByte:
    """Score every token of ``text`` once, except the first, which nothing precedes.

    If the tokenizer begins a text with a special token, that token precedes the first, and the
    whole text is scored. Special tokens are never scored, and only the tokenizer adds them. If
    a text is longer than ``max_length``, a window moves over it by half of its length. The model
    then predicts each token from at least the other half, if there is that much before it.

    Args:
        model: a causal language model. It is scored in eval mode.
        tokenizer: its tokenizer.
        text: at least 2 tokens.
        after: a prompt that comes before the text. It is not scored; all of the text is, which has
            tokens of its own, as if the model had written it.
        max_length: tokens per forward pass, at most what the model can read at once; None for that.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, there is nothing
            to score, or the model is not causal or lacks ids of the tokenizer.
        NonFiniteLossError: the model's loss is not finite; a RuntimeError.
        RuntimeError: the model is in use elsewhere.
    """
    return score(Reader(model, tokenizer, max_length), text, after=after)


def score(
    reader: Reader, text: str, *, after: str = "", prefix: Prefix | None = None
) -> BitsPerByte:
    """As `score_text`, behind retrieved passages, and with mixtures of the predictions.

    The passages stand after the special tokens that open the text, and before every window of a
    long text, as many of the nearest as `room_before` leaves room for. The same tokens are scored
    as without them.
    """
    check_text("score_text", "text", text)
    prompt = reader.tokens(after).ids if after else []
    tokens = reader.tokens(text)
    opening, ids = tokens.opening, tokens.ids
    byte_count = len(text.encode())
    # The first token to score follows another.
    first = max(opening, 1)
    if prompt:
        first = len(prompt)
        ids = [*prompt, *ids[opening:]]
    elif ids and not opening:
        byte_count -= _bytes_of_first(reader, text, ids)
    if first >= len(ids) or byte_count == 0:
        least = "1 token" if opening or prompt else "2 tokens"
        raise NothingToScoreError(
            f"score_text: text must have at least {least}, got {text[:20]!r} with "
            f"{len(ids) - opening}"
        )
    nll = 0.0
    count = 0
    prefix = prefix or Prefix()
    sees = bool(prefix.mixtures)
    with reader.reading(), seen_hidden_states(reader.model, is_needed=sees) as states:
        predictions = _predictions(reader, ids, first, opening, prefix, states)
        for logits, targets in predictions:
            losses = cross_entropy(logits, targets, reduction="none")
            nll += losses.double().sum().item()
            count += len(targets)
    if not math.isfinite(nll):
        raise NonFiniteLossError(f"score_text: the loss of {text[:20]!r}... is {nll}")
    return BitsPerByte(nll, byte_count, count)


def _bytes_of_first(reader: Reader, text: str, ids: list[int]) -> int:
    """UTF-8 bytes of ``text`` in its first token, which may split a character."""
    content = reader.vocabulary.content(ids[:1])
    if not content:
        content = str(reader.tokenizer.decode(ids[:1])).encode()
    # Do not count the space that some tokenizers put before a text.
    return len(content) - (not text.encode().startswith(content))


def _predictions(
    reader: Reader,
    ids: list[int],
    first: int,
    opening: int,
    prefix: Prefix,
    states: HiddenStates,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits, and the tokens of ``ids`` from ``first`` on that they predict, behind the passages.

    ``opening`` tokens open the text. Take them in `Reader.reading`. ``states`` sees the passes.
    """
    head = prefix.before(ids, opening, reader.window)
    # Without passages, only the first window reads the special tokens that open a text.
    body = ids[opening:] if head else ids
    first -= len(ids) - len(body)
    windows = _windows(first, len(body), reader.window - len(head))
    for begin, start, end in windows:
        before, behind = body[begin:start], torch.tensor(body[start:end])
        question = Question("", before, opening=0, start=0, cursor=len(before))
        place = 0
        predictions = reader.logits(head, body[begin:end], len(before), prefix)
        for logits, targets in predictions:
            if prefix.mixtures:
                logits = _mixed(
                    prefix.mixtures, question, behind, place, logits, states.latest
                )
            yield logits, targets
            place += len(targets)


def _mixed(
    mixtures: Sequence[Mixture],
    question: Question,
    behind: Tensor,
    place: int,
    logits: Tensor,
    hidden: Tensor | None,
) -> Tensor:
    """What predicts the tokens ``[T]`` behind a question from a place on, with what the mixtures
    say. ``hidden`` is of all tokens that were read."""
    rows = []
    for number, row in enumerate(logits, start=place):
        # The last one predicts what comes behind the text.
        state = None if hidden is None else hidden[0, number - len(behind) - 1]
        prediction = Prediction(row, state)
        rows.append(mixed_logits(mixtures, question, behind[:number], prediction))
    return torch.stack(rows)


def _windows(first: int, length: int, window: int) -> list[tuple[int, int, int]]:
    """Where each window begins, where what it scores begins, and where both end.

    The windows overlap by half; the scored ranges join up, from ``first`` to ``length``.
    """
    windows = []
    for begin in range(0, length, window // 2):
        end = min(begin + window, length)
        if end > first:
            windows.append((begin, first, end))
            first = end
    return windows
