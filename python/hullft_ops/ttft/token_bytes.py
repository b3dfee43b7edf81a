"""Counting the bytes of text that tokens stand for."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "\u0120"  # how byte-level tokens write a space
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


def scored_bytes(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    first: int,
) -> int:
    """UTF-8 bytes of ``text`` in the tokens from ``first`` on; a token may split a character.

    Args:
        tokenizer: a fast tokenizer.
        text: the text.
        ids: its tokens, without special tokens that the tokenizer adds.
        offsets: the span of characters of each token, as fast tokenizers report it.
        first: 0 or 1.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    if _is_byte_level(tokenizer):
        # Offsets do not help here: some of these tokenizers leave white space out of them.
        return len(text.encode()) - sum(
            _bytes_of_first(tokenizer, text, token) for token in tokens[:first]
        )
    return len(text.encode()) - _leading_bytes(text, tokens, offsets, first)


def _is_byte_level(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether tokens have one character per byte."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    return "ByteLevel" in json.dumps(decoder)


def _bytes_of_first(tokenizer: "PreTrainedTokenizerBase", text: str, token: str) -> int:
    if token in tokenizer.get_added_vocab():
        return len(token.encode())
    # Do not count the space that some tokenizers put before a text.
    return len(token) - (token.startswith(_SPACE) and not text.startswith(" "))


def _leading_bytes(
    text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], first: int
) -> int:
    if first == 0:
        return 0
    end = offsets[0][1]
    if len(offsets) == 1 or offsets[1][0] >= end:
        return len(text[:end].encode())
    # The first two tokens share a character. Either the first token is one byte of it, or it is the
    # mark that SentencePiece puts before a text, and holds no byte.
    shared = 1 if _BYTE_FALLBACK.fullmatch(tokens[0]) else 0
    return len(text[: offsets[1][0]].encode()) + shared
