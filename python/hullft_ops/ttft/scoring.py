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
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.loss import NonFiniteLossError
from hullft_ops.ttft.models.hidden import HiddenStates, seen_hidden_states
from hullft_ops.ttft.prefix import Mixture, Prediction, Prefix, mixed_logits
from hullft_ops.ttft.question import Question, question_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class NothingToScoreError(ValueError):
    """No token of a text has a context, so the text has no score."""


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
    question = question_of(tokenizer, after) if after else None
    return score(LanguageModel(model, tokenizer, max_length), text, after=question)


def score(
    language_model: LanguageModel,
    text: str,
    *,
    after: Question | None = None,
    prefix: Prefix | None = None,
) -> BitsPerByte:
    """As `score_text`, after a question and retrieved passages, and with mixtures.

    The passages stand after the special tokens that open the text, and before every window of a
    long text, as many of the nearest as `room_before` leaves room for. The same tokens are scored
    as without them.
    """
    check_text("score_text", "text", text)
    prefix = prefix or Prefix()
    tokens = language_model.tokens(text)
    byte_count = len(text.encode())
    least = "1 token" if tokens.opening or after else "2 tokens"
    if after is None:
        # The first token to score follows another.
        first = max(tokens.opening, 1)
        if tokens.ids and not tokens.opening:
            byte_count -= _bytes_of_first(language_model, text, tokens.ids)
        after = Question("", tokens.ids[:first], tokens.opening, 0, first)
        ids = tokens.ids[first:]
    else:
        ids = tokens.ids[tokens.opening :]
    if not ids or byte_count == 0:
        raise NothingToScoreError(
            f"score_text: text must have at least {least}, got {text[:20]!r} with "
            f"{len(tokens.ids) - tokens.opening}"
        )
    nll = 0.0
    count = 0
    sees = bool(prefix.mixtures)
    with (
        language_model.reading(),
        seen_hidden_states(language_model.model, is_needed=sees) as states,
    ):
        predictions = _predictions(language_model, after, ids, prefix, states)
        for logits, targets in predictions:
            losses = cross_entropy(logits, targets, reduction="none")
            nll += losses.double().sum().item()
            count += len(targets)
    if not math.isfinite(nll):
        raise NonFiniteLossError(f"score_text: the loss of {text[:20]!r}... is {nll}")
    return BitsPerByte(nll, byte_count, count)


def _bytes_of_first(language_model: LanguageModel, text: str, ids: list[int]) -> int:
    """UTF-8 bytes of ``text`` in its first token, which may split a character."""
    content = language_model.vocabulary.content(ids[:1])
    if not content:
        content = str(language_model.tokenizer.decode(ids[:1])).encode()
    # Do not count the space that some tokenizers put before a text.
    return len(content) - (not text.encode().startswith(content))


def _predictions(
    language_model: LanguageModel,
    question: Question,
    ids: list[int],
    prefix: Prefix,
    states: HiddenStates,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits, and the tokens ``ids`` that they predict, after the passages and a question.

    Take them in `LanguageModel.reading`. ``states`` sees the passes.
    """
    window = language_model.window
    if question.suffix:
        # The marks must stay before the text, of which a window has at least the first half.
        row = prefix.row(question, max(window - len(ids), window // 2))
        head, question = row.head, row.question
    else:
        head = prefix.head_of([*question.ids, *ids], question.opening, window)
        # Without passages, only the first window reads the special tokens that open a text.
        question = question.behind_opening() if head else question
    body = [*question.ids, *ids]
    windows = _windows(len(question.ids), len(body), window - len(head))
    for begin, start, end in windows:
        before, behind = body[begin:start], torch.tensor(body[start:end])
        if begin or start > len(question.ids):
            question = Question("", before, opening=0, start=0, cursor=len(before))
        place = 0
        predictions = language_model.logits(head, body[begin:end], len(before), prefix)
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
    """What predicts the tokens ``[T]`` after a question from a place on, with what the mixtures
    say. ``hidden`` is of all tokens that were read."""
    rows = []
    for number, row in enumerate(logits, start=place):
        # The last one predicts what comes after the text.
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
