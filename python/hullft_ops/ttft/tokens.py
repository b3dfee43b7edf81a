"""A text as the tokens that a model reads."""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokenizers with one vocabulary may merge, normalise and prefix text differently.
SENTENCE = "Naïve  TOKENS of x_1 = 3.14;\n\tİt's 10,000 日本 🙂"


@dataclass(frozen=True)
class Tokens:
    """A text's tokens, without those that the tokenizer appends to end a text.

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


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Differs between tokenizers that make other tokens of a text."""
    tokens = tokenizer(SENTENCE)["input_ids"]
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps([vocabulary, tokens]).encode()).hexdigest()
