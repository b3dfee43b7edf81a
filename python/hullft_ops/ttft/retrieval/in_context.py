"""The texts of a datastore that stand before a prompt."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from hullft_ops.ttft.model.prefix import fitting, opened_tokens, prefix_room
from hullft_ops.ttft.store.base import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A blank line tells the model that another text begins.
SEPARATOR = "\n\n"
# Keep the tokens of this many texts: some 30 MB for texts of 1000 tokens.
TOKENIZED_TEXTS = 4096


class InContext:
    """Picks the nearest texts of a store, ``count`` at most, that fit before a prompt.

    Texts stay whole. The farthest go until the rest fits into the model's ``context``.
    """

    def __init__(
        self, store: Store, tokenizer: "PreTrainedTokenizerBase", count: int, context: int
    ) -> None:
        # Each takes a token or more.
        self.count = min(count, context)
        self._tokenizer = tokenizer
        self._context = context
        self._tokens = lru_cache(TOKENIZED_TEXTS)(lambda i: self._tokenize(store.texts[i]))

    def pick(self, prompt: str, nearest: Sequence[int]) -> tuple[list[int], list[list[int]]]:
        """Positions and tokens of the texts before ``prompt``, the nearest last, of ``nearest``."""
        if not self.count:
            return [], []
        tokens, opening = opened_tokens(self._tokenizer, prompt)
        room = prefix_room(self._context, len(tokens), opening)
        # Lazy: a text beyond the last that fits is not read.
        texts = fitting(map(self._tokens, nearest[: self.count]), room)
        return list(nearest[: len(texts)])[::-1], texts[::-1]

    def _tokenize(self, text: str) -> list[int]:
        encoding = self._tokenizer(text + SEPARATOR, add_special_tokens=False, verbose=False)
        return list(encoding["input_ids"])
