"""Retrieved passages before a prompt: how many fit, and the cache of those that are read."""

import copy
import inspect
from collections.abc import Sequence
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops.ttft.models.cache import cache_keyword, is_plain
from hullft_ops.ttft.models.checks import unwrapped
from hullft_ops.ttft.models.forwards import eval_mode
from hullft_ops.ttft.models.onednn import wide_products
from hullft_ops.ttft.store.base import Store

# A blank line tells the model that another passage begins.
SEPARATOR = "\n\n"


def opened_tokens(
    tokenizer: "PreTrainedTokenizerBase", text: str
) -> tuple[list[int], int]:
    """The tokens without those that the tokenizer appends to end a text, and how many open it."""
    encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    tokens = list(encoding["input_ids"])
    is_special = list(encoding["special_tokens_mask"])
    # Keep one token of an empty text: the model can continue the token that opens a text.
    while len(tokens) > 1 and is_special[-1]:
        tokens.pop()
        is_special.pop()
    opening = is_special.index(0) if 0 in is_special else len(is_special)
    return tokens, opening


def context_room(window: int, length: int, opening: int) -> int:
    """How many tokens may stand before ``length`` tokens, of which ``opening`` special ones open.

    As many as leave room for the whole text. Before a text longer than half of the window they may
    take the other half, or a little less, because a window needs two tokens of the text.
    """
    room = max(window - length, window // 2 - opening)
    return max(0, min(room, window - opening - 2))


def with_following(store: Store, position: int, following: int) -> list[int]:
    """A passage, and up to so many that follow it in its document."""
    run = [position]
    while len(run) <= following and (after := store.following(run[-1])) is not None:
        run.append(after)
    return run


def retrieved_runs(
    store: Store, nearest: Sequence[int], following: int
) -> list[list[int]]:
    """Each passage with those that follow it, up to one that stands in a run before.

    The runs of the first k passages are the first k runs; one is empty if it would repeat.
    """
    runs = []
    read: set[int] = set()
    for position in nearest:
        run = with_following(store, position, following)
        run = [*takewhile(lambda passage: passage not in read, run)]
        runs.append(run)
        read.update(run)
    return runs


def fitting_passages(
    store: Store,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    runs: Sequence[Sequence[int]],
    window: int,
) -> list[list[int]]:
    """The tokens of the first runs of passages, as many as fit before the prompt."""
    tokens, opening = opened_tokens(tokenizer, prompt)
    room = context_room(window, len(tokens), opening)
    passages: list[list[int]] = []
    for run in runs:
        text = "".join(store.texts[index] for index in run)
        if run:
            text += SEPARATOR
        encoding = tokenizer(text, add_special_tokens=False, verbose=False)
        room -= len(encoding["input_ids"])
        if room < 0:
            break
        passages.append(list(encoding["input_ids"]))
    return passages


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
        return list(chain.from_iterable(self.passages))

    def arguments(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Arguments for one forward call behind the cache of all ``tokens`` but the last.

        Empty if there is no cache, or it is of other tokens.
        """
        if self._cache is None or list(tokens) != self.tokens:
            return {}
        # Layers of these kinds put longer tensors in place of theirs, so the copy may share them.
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        return {self._keyword: cache, "use_cache": True}


@torch.no_grad()
def _read(model: "PreTrainedModel", tokens: Sequence[int]) -> Any:
    """The cache of the tokens; None if the model's cache keeps more than keys and values."""
    ids = torch.tensor([list(tokens)], device=model.device)
    arguments: dict[str, Any] = {"use_cache": True}
    # The logits of long passages would take more memory than their cache.
    if "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters:
        arguments["logits_to_keep"] = 1
    with eval_mode(model), wide_products(model):
        output = model(input_ids=ids, **arguments)
    cache: Any = getattr(output, cache_keyword(model), None)
    if not is_plain(cache) or cache.get_seq_length() != len(tokens):
        return None
    if model.device.type == "cuda":
        # The time that this took is part of the adaptation.
        torch.cuda.current_stream(model.device).synchronize()
    return cache
