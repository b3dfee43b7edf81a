"""Texts before a prompt: how many fit, and the cache with which the model reads them only once."""

import copy
import inspect
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops.ttft.model.context import unwrapped, virtual_tokens
from hullft_ops.ttft.model.memory import is_out_of_memory
from hullft_ops.ttft.model.onednn import wide_products
from hullft_ops.ttft.model.patches import eval_mode

# Enough to show a model that ignores a cache, or counts positions from where it begins.
_PROBE_TOKENS = 8
# A model that cannot go on from a cache may raise one of these.
_NOT_CONTINUED = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# With these, generation needs no more than the cache of one sequence.
_STEERING = {
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "eos_token_id",
}
_STEERING |= {
    "pad_token_id",
    "max_new_tokens",
    "min_new_tokens",
    "return_dict_in_generate",
}
# What a model's own configuration may ask for beyond that.
_SEVERAL = ("num_beams", "num_return_sequences", "guidance_scale")
_OTHERS = ("cache_implementation", "prompt_lookup_num_tokens", "assistant_early_exit")

# Whether a model goes on from a cache as from the tokens themselves.
_known: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def prefix_room(context: int, text: int, opening: int) -> int:
    """How many tokens may stand before ``text`` tokens, of which ``opening`` special ones open it.

    As many as leave room for the whole text. Before a text longer than half of the context they may
    take the other half, or a little less, because a window needs two tokens of the text.
    """
    return max(
        0, min(max(context - text, context // 2 - opening), context - opening - 2)
    )


def fitting(texts: Iterable[Sequence[int]], room: int) -> list[list[int]]:
    """The first texts that fit into ``room`` tokens together, each whole."""
    kept: list[list[int]] = []
    for text in texts:
        room -= len(text)
        if room < 0:
            break
        kept.append(list(text))
    return kept


def opened_tokens(
    tokenizer: "PreTrainedTokenizerBase", text: str
) -> tuple[list[int], int]:
    """The tokens without those that the tokenizer appends to end a text, and how many open it."""
    encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    tokens, added = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
    # Keep one token of an empty text: the model can continue the token that opens a text.
    while len(tokens) > 1 and added[-1]:
        tokens.pop()
        added.pop()
    return tokens, added.index(0) if 0 in added else len(added)


class Prefill:
    """A model's cache of all of some tokens but the last, which is read again for its logits. It
    serves until torch counts a write to the model's parameters, or other adapters are active."""

    def __init__(
        self, model: "PreTrainedModel", tokens: Sequence[int], cache: Any
    ) -> None:
        self.tokens = list(tokens)
        self._cache = cache
        self._state = _state(model)

    def arguments(self, model: "PreTrainedModel") -> dict[str, Any]:
        """Arguments for one call of ``forward`` or ``generate`` to go on from the cache."""
        # Layers of these kinds put longer tensors in place of theirs, so the copy may share them.
        copied = copy.copy(self._cache)
        copied.layers = [copy.copy(layer) for layer in self._cache.layers]
        return {cache_keyword(model): copied, "use_cache": True}

    def begins(self, model: "PreTrainedModel", tokens: Sequence[int]) -> bool:
        """Whether the model, as it is now, may begin ``tokens`` with the cache."""
        head = list(tokens[: len(self.tokens)])
        return head == self.tokens and self._state == _state(model)

    def steers(self, model: "PreTrainedModel", generate_kwargs: dict[str, Any]) -> bool:
        """Whether generation with these arguments can use the cache."""
        config = getattr(model, "generation_config", None)
        return (
            generate_kwargs.keys() <= _STEERING
            and all(getattr(config, name, None) in (None, 1) for name in _SEVERAL)
            and all(getattr(config, name, None) is None for name in _OTHERS)
            and getattr(config, "use_cache", None) is not False
        )


def prefill(model: "PreTrainedModel", tokens: Sequence[int]) -> Prefill | None:
    """Read ``tokens``, in eval mode and without gradients. None if the model makes no plain cache,
    or does not go on from one as from the tokens: it must then read them each time."""
    if len(tokens) < 2 or virtual_tokens("prefill", model):
        return None
    if model not in _known:
        found = _goes_on(model, tokens[:_PROBE_TOKENS])
        if found is None:
            return None
        _known[model] = found
    return _read(model, tokens) if _known[model] else None


@torch.no_grad()
def _goes_on(model: "PreTrainedModel", tokens: Sequence[int]) -> bool | None:
    """Whether a cache of half of them gives the others' logits; None if these are not finite."""
    ids = torch.tensor([list(tokens)], device=model.device)
    half = ids.shape[1] // 2
    wanted = model(input_ids=ids, use_cache=False).logits[0, half:]
    if not wanted.isfinite().all():
        return None
    try:
        read = _read(model, tokens[: half + 1])
        if read is None:
            return False
        logits = model(input_ids=ids[:, half:], **read.arguments(model)).logits[0]
        rounding = torch.finfo(wanted.dtype).eps ** 0.5 * wanted.abs().max()
        return bool((logits - wanted).abs().max() <= rounding)
    except _NOT_CONTINUED as error:
        if is_out_of_memory(error):
            raise
        return False


@torch.no_grad()
def _read(model: "PreTrainedModel", tokens: Sequence[int]) -> Prefill | None:
    """None if the layers of the model's cache cannot be copied."""
    ids = torch.tensor([list(tokens[:-1])], device=model.device)
    # The logits of a long prefix would take more memory than its cache.
    one = {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model) else {}
    cache: Any = getattr(
        model(input_ids=ids, use_cache=True, **one), cache_keyword(model), None
    )
    if not is_plain(cache) or cache.get_seq_length() != ids.shape[1]:
        return None
    return Prefill(model, tokens, cache)


def is_plain(cache: Any) -> bool:
    """Whether a cache keeps nothing but keys and values, and its layers can be copied."""
    from transformers.cache_utils import (
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
    )

    plain = DynamicLayer, DynamicSlidingWindowLayer
    return type(cache) is DynamicCache and all(
        type(layer) in plain for layer in cache.layers
    )


def cache_keyword(model: nn.Module) -> str:
    """What this version of transformers calls a cache."""
    return "cache" if "cache" in _parameters(model) else "past_key_values"


def _parameters(model: Any) -> Any:
    return inspect.signature(unwrapped(model).forward).parameters


def _state(model: nn.Module) -> list[tuple[object, object]]:
    """Parameters with the writes to them, and which adapters are active."""
    return [
        # Torch counts no writes to a tensor made in inference mode.
        *((id(p), 0 if p.is_inference() else p._version) for p in model.parameters()),
        *adapter_switches(model),
    ]


def adapter_switches(model: nn.Module) -> list[tuple[str, str]]:
    """Which adapters of which layers are active, and how they are scaled."""
    adapted = [module for module in model.modules() if hasattr(module, "base_layer")]
    switches = ("disable_adapters", "active_adapters", "scaling")
    return [
        (name, str(getattr(layer, name, None)))
        for layer in adapted
        for name in switches
    ]


class Prefix:
    """The texts before the prompt of an adaptation, nearest last, and the cache of them and of the
    tokens that open a text, if there can be one. ``is_read`` while there is an adaptation."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
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
        with eval_mode(model), wide_products(model), torch.no_grad():
            self.cached = prefill(model, [*tokens[:opening], *self.ids])
        if model.device.type == "cuda":
            # The time that this took is part of the adaptation.
            torch.cuda.current_stream(model.device).synchronize()

    @property
    def ids(self) -> list[int]:
        return list(chain.from_iterable(self.texts))
