"""Texts before a prompt: how many fit, and where they go."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prefix_room(context: int, text: int, opening: int) -> int:
    """How many tokens may stand before a text.

    As many as leave room for the whole text. Before a text longer than half of the context they may
    take the other half, or a little less, because a window needs two tokens of the text.

    Args:
        context: tokens that the model reads at once.
        text: tokens of the text, its opening special tokens included.
        opening: how many those are. They stand before the prefix.
    """
    return max(0, min(max(context - text, context // 2 - opening), context - opening - 2))


def fitting(texts: Iterable[Sequence[int]], room: int) -> list[list[int]]:
    """The first texts that fit into ``room`` tokens together, each whole."""
    kept: list[list[int]] = []
    for text in texts:
        room -= len(text)
        if room < 0:
            break
        kept.append(list(text))
    return kept


def opened_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[list[int], int]:
    """The tokens without those that the tokenizer appends to end a text, and how many open it."""
    encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    tokens, added = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
    # Keep one token of an empty text: the model can continue the token that opens a text.
    while len(tokens) > 1 and added[-1]:
        tokens.pop()
        added.pop()
    return tokens, added.index(0) if 0 in added else len(added)


class Prefix:
    """The texts that stand before the prompt of an adaptation.

    Attributes:
        texts: their tokens, the nearest text last.
    """

    def __init__(self) -> None:
        self.texts: list[list[int]] = []

    @property
    def ids(self) -> list[int]:
        return list(chain.from_iterable(self.texts))

    def clear(self) -> None:
        self.texts = []
