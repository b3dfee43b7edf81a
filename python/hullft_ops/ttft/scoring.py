"""Bits per byte: how well a model predicts a text, whatever its tokenizer.

``bpb = NLL in nats / (ln 2 * bytes scored)``, after Khamis and Maalouf, arXiv:2605.30337. Two
things differ: only the bytes of scored tokens count, and long texts are scored in full.
"""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hullft_ops._checks import check_text
from hullft_ops._terminal import progress
from hullft_ops.ttft.errors import NonFiniteLossError, NothingToScoreError
from hullft_ops.ttft.lock import exclusive
from hullft_ops.ttft.loss import next_token_losses
from hullft_ops.ttft.models.checks import check_causal, text_window
from hullft_ops.ttft.models.forwards import eval_mode
from hullft_ops.ttft.models.onednn import wide_products
from hullft_ops.ttft.reading import ReadContext
from hullft_ops.ttft.support import opened_tokens, room_before

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SPACE = "\u0120"  # how byte-level tokens write a space
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


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
    context: ReadContext | None = None,
) -> BitsPerByte:
    """Score every token of ``text`` once, except the first, which nothing precedes.

    If the tokenizer begins a text with a special token, that token precedes the first, and the
    whole text is scored. Special tokens are never scored, and only the tokenizer adds them. If
    a text is longer than ``max_length``, a window moves over it by half of its length. The model
    then predicts each token from at least the other half, if there is that much before it.

    Retrieved passages stand after the special tokens that open the text, and before every window of
    a long text. The same tokens are scored as without them. They may take what the text leaves of
    ``max_length``, or half of it if the text leaves less, for their last tokens.

    Args:
        model: a causal language model. It is scored in eval mode.
        tokenizer: its tokenizer, a fast one.
        text: at least 2 tokens.
        after: a prompt that comes before the text. It is not scored; all of the text is, which has
            tokens of its own, as if the model had written it.
        max_length: tokens per forward pass, at most what the model can read at once; None for that.
        context: retrieved passages that the model has read. `Adaptation.score` has them.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, there is nothing
            to score, the tokenizer is slow, or the model is not causal or lacks ids of the
            tokenizer.
        NonFiniteLossError: the model's loss is not finite; a RuntimeError.
        RuntimeError: another thread adapts the model.
    """
    check_text("score_text", "text", text)
    # The check puts the model in eval mode for a moment.
    with exclusive(model):
        check_causal(model, tokenizer)
    if not tokenizer.is_fast:
        raise ValueError(
            f"score_text: tokenizer must be a fast one, got {type(tokenizer).__name__}"
        )
    length = text_window(model, tokenizer, max_length)
    tokens, opening = opened_tokens(tokenizer, text)
    byte_count = len(text.encode())
    # The first token to score follows another.
    first = max(opening, 1)
    prompt = opened_tokens(tokenizer, after)[0] if after else []
    if prompt:
        first = len(prompt)
        tokens = [*prompt, *tokens[opening:]]
    elif tokens and not opening:
        byte_count -= _bytes_of_first(tokenizer, text, tokens[0])
    if first >= len(tokens) or byte_count == 0:
        least = "1 token" if opening or prompt else "2 tokens"
        raise NothingToScoreError(
            f"score_text: text must have at least {least}, got {text[:20]!r} with "
            f"{len(tokens) - opening}"
        )
    head: list[int] = []
    if context is not None and context.passages:
        room = room_before(len(tokens), opening, length)
        if room:
            head = [*tokens[:opening], *context.ids[-room:]]
    # Without passages, only the first window reads the special tokens that open a text.
    body = tokens[opening:] if head else tokens
    first -= len(tokens) - len(body)
    with exclusive(model):
        nll = _negative_log_likelihood(
            model, head, body, first, length - len(head), context
        )
    if not math.isfinite(nll):
        raise NonFiniteLossError(f"score_text: the loss of {text[:20]!r}... is {nll}")
    return BitsPerByte(nll=nll, bytes=byte_count, tokens=len(body) - first)


def _bytes_of_first(tokenizer: "PreTrainedTokenizerBase", text: str, first: int) -> int:
    """UTF-8 bytes of ``text`` in its first token, which may split a character."""
    token = tokenizer.convert_ids_to_tokens([first])[0]
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is not None and b"ByteLevel" in decoder.__getstate__():
        # Such tokens have a character per byte. Offsets do not help here: some of these tokenizers
        # leave white space out of them.
        if token in tokenizer.get_added_vocab():
            return len(token.encode())
        # Do not count the space that some tokenizers put before a text.
        return len(token) - (token.startswith(_SPACE) and not text.startswith(" "))
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    offsets = encoding["offset_mapping"]
    end = offsets[0][1]
    if len(offsets) == 1 or offsets[1][0] >= end:
        return len(text[:end].encode())
    # The first two tokens share a character. Either the first token is one byte of it, or it is the
    # mark that SentencePiece puts before a text, and holds no byte.
    shared = 1 if _BYTE_FALLBACK.fullmatch(token) else 0
    return len(text[: offsets[1][0]].encode()) + shared


@torch.no_grad()
def _negative_log_likelihood(
    model: "PreTrainedModel",
    head: list[int],
    body: list[int],
    first: int,
    window: int,
    context: ReadContext | None,
) -> float:
    """Of ``body`` from ``first`` on, in windows of so many tokens with ``head`` before each."""
    tokens = torch.tensor([*head, *body], device=model.device)
    before, after = tokens[: len(head)], tokens[len(head) :]
    total = 0.0
    windows = _windows(first, len(body), window)
    with eval_mode(model), wide_products(model):
        for begin, scored, end in progress(windows, desc="scoring", unit="window"):
            cache = {} if context is None else context.arguments(head)
            opener = before[-1:] if cache else before
            text = torch.cat([opener, after[begin:end]])
            losses = next_token_losses(model, text, **cache)
            total += losses[len(opener) + scored - begin - 1 :].double().sum().item()
    return total


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
