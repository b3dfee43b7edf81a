"""A text as the tokens that a model reads."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokenizers with one vocabulary may merge, normalise and prefix text differently.
PROBE = "Naïve  TOKENS of x_1 = 3.14;\n\tİt's 10,000 日本 🙂"


@dataclass(frozen=True)
class Tokens:
    """A text's tokens, without any that the tokenizer appends to end a text.

    Attributes:
        ids: the tokens.
        opening: how many special ones open the text.
    """

    ids: list[int]
    opening: int


def tokenized(tokenizer: "PreTrainedTokenizerBase", text: str) -> Tokens:
    """The tokens of a text."""
    encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids = list(encoding["input_ids"])
    is_special = list(encoding["special_tokens_mask"])
    # Keep one token of an empty text: the model can continue the token that opens a text.
    while len(ids) > 1 and is_special[-1]:
        ids.pop()
        is_special.pop()
    opening = is_special.index(0) if 0 in is_special else len(is_special)
    return Tokens(ids, opening)


def plain_ids(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    marks: Sequence[str],
    *,
    goes_on: bool,
) -> list[int]:
    """The tokens of a text in which special tokens and ``marks`` are text.

    If it ``goes_on``, it begins without the space that SentencePiece puts before a text.
    """

    def ids(text: str) -> list[int]:
        encoding = tokenizer(text, add_special_tokens=False, verbose=False)
        return list(encoding["input_ids"])

    def continued(text: str) -> list[int]:
        line, behind = ids("\n"), ids(f"\n{text}")
        return behind[len(line) :] if behind[: len(line)] == line else ids(text)

    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special} | set(marks)
    # split_special_tokens of transformers would leave marks whole that are not special, as Qwen's.
    cuts = (f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
    first, *others = re.split("|".join(cuts), text)
    pieces = [continued(first) if goes_on else ids(first), *map(continued, others)]
    return [token for piece in pieces for token in piece]


def count_shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(ids, others, strict=False))
    end = min(len(ids), len(others))
    return next((number for number, (one, other) in pairs if one != other), end)


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Differs between tokenizers that make other tokens of a text."""
    tokens = tokenizer(PROBE)["input_ids"]
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([vocabulary, tokens]).encode()).hexdigest()
