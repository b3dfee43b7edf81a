"""Texts before a prompt: how many fit, and what the model keeps of them."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops.ttft.model.onednn import wide_products
from hullft_ops.ttft.model.patches import modes_restored
from hullft_ops.ttft.model.prefill import Prefill, prefill


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
        cached: the adapted model's cache of them and of the tokens that open a text; None if there
            are no texts, or the model cannot go on from a cache.
        is_read: whether an adaptation is there, with or without texts.
    """

    def __init__(self) -> None:
        self.texts: list[list[int]] = []
        self.cached: Prefill | None = None
        self.is_read = False

    def read(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        texts: list[list[int]],
    ) -> None:
        """Stand before the prompt from now on. The model reads the texts, once if it can."""
        self.texts, self.cached, self.is_read = texts, None, True
        if not texts:
            return
        tokens, opening = opened_tokens(tokenizer, "a")
        with modes_restored(model), wide_products(model), torch.no_grad():
            model.train(False)
            self.cached = prefill(model, [*tokens[:opening], *self.ids])
        if model.device.type == "cuda":
            # The time that this took is part of the adaptation.
            torch.cuda.current_stream(model.device).synchronize()

    @property
    def ids(self) -> list[int]:
        return list(chain.from_iterable(self.texts))

    def clear(self) -> None:
        self.texts, self.cached, self.is_read = [], None, False
