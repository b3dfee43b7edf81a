"""Bits per byte: how well a model predicts a text, whatever its tokenizer.

``bpb = NLL in nats / (ln 2 * bytes scored)``, after Khamis and Maalouf, arXiv:2605.30337. Two
things differ: only the bytes of scored tokens count, and long texts are scored in full.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hullft_ops._checks import check_integer, check_text
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.model.causal import check_causal, highest_id
from hullft_ops.ttft.model.context import context_length
from hullft_ops.ttft.model.loss import next_token_losses
from hullft_ops.ttft.model.onednn import wide_products
from hullft_ops.ttft.model.patches import eval_mode
from hullft_ops.ttft.model.prefix import (
    Prefill,
    Prefix,
    opened_tokens,
    prefill,
    prefix_room,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SPACE = "\u0120"  # how byte-level tokens write a space
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class BitsPerByte:
    """A text's score. Over several texts, add up ``nll`` and ``bytes`` before dividing.

    Attributes:
        nll: negative log-likelihood of the scored tokens, in nats.
        bytes, tokens: the scored tokens' UTF-8 bytes, and how many tokens they are.
    """

    nll: float
    bytes: int
    tokens: int

    @property
    def value(self) -> float:
        """Bits per byte."""
        return self.nll / (math.log(2) * self.bytes)


def bits_per_byte(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    *,
    max_length: int | None = None,
    stride: int | None = None,
    prefix_ids: Sequence[int] = (),
) -> float:
    """Bits per byte of ``text`` under ``model``. `score_text` explains it and returns the parts."""
    return _score(
        "bits_per_byte", model, tokenizer, text, max_length, stride, prefix_ids
    ).value


def score_text(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    *,
    max_length: int | None = None,
    stride: int | None = None,
    prefix_ids: Sequence[int] = (),
) -> BitsPerByte:
    """Score every token of ``text`` once, except the first, which has no context.

    If the tokenizer begins a text with a special token, that token is the context of the first, and
    the whole text is scored. Special tokens are never scored, and only the tokenizer adds them. If
    a text is longer than the context, a window moves over it by ``stride``. The model then predicts
    each token from at least ``max_length - stride`` earlier tokens, if there are that many. Runs in
    eval mode. Scorings of one model in several threads wait for each other.

    A prefix stands after the special tokens that open the text, and before every window of a long
    text. The same tokens are scored as without it. It may take what the text leaves of
    ``max_length``, or half of it if the text leaves less, for its last tokens.

    Args:
        model, tokenizer: a causal language model and its tokenizer, a fast one.
        text: at least 2 tokens.
        max_length: tokens per forward pass, at most the model's context; None for that context.
        stride: tokens that the window moves by; None for half of the window. It must be below
            ``max_length``, less the tokens of the prefix.
        prefix_ids: tokens before the text, without special ones, as in ``report.prefix_ids``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, there is nothing
            to score, the tokenizer is slow or lacks a token of prefix_ids, or the model is not
            causal or lacks ids of the tokenizer.
        NonFiniteLossError: the model's loss is not finite; a RuntimeError.
        RuntimeError: another thread adapts the model, or one that shares its modules.
    """
    return _score("score_text", model, tokenizer, text, max_length, stride, prefix_ids)


def score_behind(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    context: int,
    prefix: Prefix,
) -> BitsPerByte:
    """`score_text` with ``prefix`` before the text, in windows of ``context`` tokens."""
    return _score(
        "score_text", model, tokenizer, text, context, None, prefix.ids, prefix.cached
    )


def _score(
    function: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    max_length: int | None,
    stride: int | None,
    prefix_ids: Sequence[int],
    cached: Prefill | None = None,
) -> BitsPerByte:
    check_text(function, "text", text)
    check_causal(function, model, tokenizer)
    if not tokenizer.is_fast:
        raise ValueError(
            f"{function}: tokenizer must be a fast one, got {type(tokenizer)}"
        )
    length = context_length(function, model, tokenizer, max_length)
    ids, start = opened_tokens(tokenizer, text)
    first = max(start, 1)
    byte_count = len(text.encode())
    if ids and not start:
        byte_count -= _bytes_of_first(tokenizer, text, ids[0])
    if first >= len(ids) or byte_count == 0:
        raise ValueError(
            f"{function}: text must have at least {'1 token' if start else '2 tokens'}, "
            f"got {text[:20]!r} with {len(ids) - start}"
        )
    highest = highest_id(tokenizer)
    prefix = [
        check_integer(function, "each of prefix_ids", i, 0, highest) for i in prefix_ids
    ]
    room = prefix_room(length, len(ids), start)
    head = (
        [*ids[:start], *prefix[max(0, len(prefix) - room) :]] if prefix and room else []
    )
    # Without a prefix, only the first window reads the special tokens that open a text.
    skipped = start if head else 0
    window = length - len(head)
    stride = window // 2 if stride is None else stride
    stride = check_integer(function, "stride", stride, 1)
    if stride >= window:
        less = f", less the prefix of {len(head)} tokens" if head else ""
        raise ValueError(
            f"{function}: stride must be below max_length {length}{less}, got {stride}"
        )
    body, first = ids[skipped:], first - skipped
    nll = _negative_log_likelihood(model, head, body, first, window, stride, cached)
    if not math.isfinite(nll):
        raise NonFiniteLossError(f"{function}: the loss of {text[:20]!r}... is {nll}")
    return BitsPerByte(nll=nll, bytes=byte_count, tokens=len(body) - first)


def _bytes_of_first(tokenizer: "PreTrainedTokenizerBase", text: str, first: int) -> int:
    """UTF-8 bytes of ``text`` in its first token, which may split a character."""
    token = tokenizer.convert_ids_to_tokens([first])[0]
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    if "ByteLevel" in json.dumps(decoder):
        # Such tokens have a character per byte. Offsets do not help here: some of these tokenizers
        # leave white space out of them.
        if token in tokenizer.get_added_vocab():
            return len(token.encode())
        # Do not count the space that some tokenizers put before a text.
        return len(token) - (token.startswith(_SPACE) and not text.startswith(" "))
    offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
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
    length: int,
    stride: int,
    cached: Prefill | None,
) -> float:
    """Of ``body`` from ``first`` on, in windows of ``length`` tokens with ``head`` before each."""
    tokens = torch.tensor([*head, *body], device=model.device)
    before, after = tokens[: len(head)], tokens[len(head) :]
    begin, total = 0, 0.0
    with eval_mode(model), wide_products(model):
        if cached is None or not (head and cached.begins(model, head)):
            # A single window reads the prefix once anyway.
            cached = prefill(model, head) if len(body) > length else None
        if cached is not None:
            before = before[-1:]
        while first < len(body):
            end = min(begin + length, len(body))
            arguments = {} if cached is None else cached.arguments(model)
            window = torch.cat([before, after[begin:end]])
            losses = next_token_losses(model, window, **arguments)
            total += losses[len(before) + first - begin - 1 :].double().sum().item()
            # The scored ranges join up.
            begin, first = begin + stride, end
    return total
