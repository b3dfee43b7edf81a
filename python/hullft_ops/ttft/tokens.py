"""A text as the tokens that a model reads."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokenizers with one vocabulary may merge, normalise and prefix text differently.
_SENTENCE = "Naïve  TOKENS of x_1 = 3.14;\n\tİt's 10,000 日本 🙂"
# How SentencePiece writes a byte.
BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")
# GPT-2 writes a byte as the character of that number if it shows, else as one from 256 on.
_SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
_BYTES = {chr(byte): byte for byte in _SHOWN}
_BYTES |= {chr(256 + rank): byte for rank, byte in enumerate(_HIDDEN)}


@dataclass(frozen=True)
class Tokens:
    """A text's tokens, without those that the tokenizer appends to end a text.

    Attributes:
        ids: the tokens.
        opening: how many special ones open the text.
        offsets: the characters that each stands for, from and to; None if the tokenizer is slow.
    """

    ids: list[int]
    opening: int
    offsets: list[tuple[int, int]] | None


def tokenized(tokenizer: "PreTrainedTokenizerBase", text: str) -> Tokens:
    """The tokens of a text."""
    is_fast = tokenizer.is_fast
    encoding = tokenizer(
        text,
        return_special_tokens_mask=True,
        return_offsets_mapping=is_fast,
        verbose=False,
    )
    ids = list(encoding["input_ids"])
    is_special = list(encoding["special_tokens_mask"])
    # Keep one token of an empty text: the model can continue the token that opens a text.
    while len(ids) > 1 and is_special[-1]:
        ids.pop()
        is_special.pop()
    opening = is_special.index(0) if 0 in is_special else len(is_special)
    return Tokens(ids, opening, encoding["offset_mapping"] if is_fast else None)


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Differs between tokenizers that make other tokens of a text."""
    tokens = tokenizer(_SENTENCE)["input_ids"]
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([vocabulary, tokens]).encode()).hexdigest()


def bytes_of_token(
    tokenizer: "PreTrainedTokenizerBase",
) -> Callable[[str], bytes] | None:
    """The function that gives the bytes of a token's text; None if the tokenizer is neither of
    GPT-2's kind, which writes bytes, nor of SentencePiece's."""
    decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
    kinds = b"" if decoder is None else decoder.__getstate__()
    if b"ByteLevel" in kinds:
        return _of_byte_level
    if b"ByteFallback" in kinds or b"Metaspace" in kinds:
        return _of_sentence_piece
    return None


def _of_byte_level(text: str) -> bytes:
    return bytes(_BYTES.get(character, 0) for character in text)


def _of_sentence_piece(text: str) -> bytes:
    if BYTE_FALLBACK.fullmatch(text):
        return bytes.fromhex(text[3:5])
    return text.replace("\u2581", " ").encode()
