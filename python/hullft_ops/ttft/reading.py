"""Retrieved passages that a model has read: what is kept of them stands before texts."""

import copy
import inspect
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from hullft_ops._terminal import progress
from hullft_ops.ttft.models.cache import cache_keyword, is_plain
from hullft_ops.ttft.models.checks import unwrapped
from hullft_ops.ttft.models.forwards import eval_mode
from hullft_ops.ttft.models.onednn import wide_products
from hullft_ops.ttft.support import opened_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A small model reads so many in about a second on one core.
_TOKENS_AT_ONCE = 512


class ReadContext:
    """Retrieved passages that a model has read, to score and continue texts behind them.

    Attributes:
        passages: the tokens of each, nearest last.
        tokens: what the cache belongs to: the tokens that open a text, and the passages.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        passages: Sequence[Sequence[int]],
    ) -> None:
        self.passages = [list(passage) for passage in passages]
        tokens, opening = opened_tokens(tokenizer, "a")
        self.tokens = [*tokens[:opening], *self.ids]
        self._keyword = cache_keyword(model)
        self._cache: Any = None
        # The cache leaves the last token out: its logits predict the first of the text.
        if passages and len(self.tokens) > 1:
            self._cache = _read(model, self.tokens[:-1])

    @property
    def ids(self) -> list[int]:
        """The tokens of all passages."""
        return list(chain.from_iterable(self.passages))

    def arguments(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Arguments for one call of the model behind the cache.

        Empty if there is no cache, or ``tokens`` begin with other tokens than it was made of.
        """
        if self._cache is None or list(tokens[: len(self.tokens)]) != self.tokens:
            return {}
        # Layers of these kinds put longer tensors in place of theirs, so the copy may share them.
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        return {self._keyword: cache, "use_cache": True}


@torch.no_grad()
def _read(model: "PreTrainedModel", tokens: Sequence[int]) -> Any:
    """The cache of the tokens; None if the model's cache keeps more than keys and values."""
    ids = torch.tensor([list(tokens)], device=model.device)
    keyword = cache_keyword(model)
    arguments: dict[str, Any] = {"use_cache": True}
    # The logits of long passages would take more memory than their cache.
    if "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters:
        arguments["logits_to_keep"] = 1
    cache: Any = None
    starts = range(0, len(tokens), _TOKENS_AT_ONCE)
    with eval_mode(model), wide_products(model):
        for start in progress(starts, desc="reading passages", unit="part"):
            part = ids[:, start : start + _TOKENS_AT_ONCE]
            output = model(input_ids=part, **arguments)
            cache = getattr(output, keyword, None)
            if not is_plain(cache):
                return None
            arguments[keyword] = cache
    if cache.get_seq_length() != len(tokens):
        return None
    return cache
