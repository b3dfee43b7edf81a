"""Keys and values of the tokens that a model has read: a cache that grows, and attention to it.

transformers copies all that a cache holds to add a token. For several tokens after a cache it also
repeats keys and values for each query head that shares them: after 2,000 tokens that takes as long
as all else. Here a cache has room, and the queries of the heads that share one become more queries
of a single head.
"""

import copy
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import (
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from hullft_ops.ttft.restore import at_exit, block, unwrapped

# So many more tokens are made room for at once.
_ROOM = 256
_NAME = "hullft_grouped"
_PLAIN = "sdpa"


def cache_argument(model: Any) -> str:
    """What this version of transformers calls a cache."""
    parameters = inspect.signature(unwrapped(model).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def keeps_keys_and_values(cache: Any) -> bool:
    """Whether a cache keeps nothing but keys and values, and its layers can be copied."""
    if type(cache) is not DynamicCache:
        return False
    plain = (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer, DummyLayer)
    return all(type(layer) in plain for layer in cache.layers)


def copied(cache: Any) -> Any:
    """A copy of a cache of keys and values, which grows by itself."""
    other = copy.copy(cache)
    # Other layers put longer tensors in place of theirs, so the copy may share them.
    other.layers = [
        GrowingLayer(layer)
        if type(layer) in (DynamicLayer, GrowingLayer)
        else copy.copy(layer)
        for layer in cache.layers
    ]
    return other


def can_be_cut(cache: Any) -> bool:
    """Whether the last tokens can be taken out of a copy again, whatever its length."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer of a model, in tensors with room for more tokens.

    Args:
        layer: begins with the same tokens, and shares their tensors until it is changed.
    """

    def __init__(self, layer: Any) -> None:
        vars(self).update(vars(layer))
        if self.is_initialized:
            # Autocast leaves keys in float32 where they are rotated, and casts them for each pass.
            self.keys = layer.keys.to(layer.values.dtype)
        self._key_room = self._value_room = torch.empty(0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append ``[B, heads, tokens, dim]``, in the cache's dtype. Returns all."""
        if not self.is_initialized:
            return super().update(key_states.to(value_states.dtype), value_states)
        self._key_room, keys = _appended(self._key_room, self.keys, key_states)
        self._value_room, values = _appended(
            self._value_room, self.values, value_states
        )
        self.keys, self.values = keys, values
        return keys, values


def _appended(room: Tensor, states: Any, new: Tensor) -> tuple[Tensor, Tensor]:
    """Append to states that begin a tensor, or another that has room. Returns it, and both."""
    start, end = states.shape[-2], states.shape[-2] + new.shape[-2]
    # A beam's tokens are put in place of another's, in other tensors.
    is_there = room.data_ptr() == states.data_ptr()
    if not is_there or room.shape[-2] < end:
        *outer, _, size = states.shape
        room = states.new_empty(*outer, end + _ROOM, size)
        room[..., :start, :] = states
    room[..., start:end, :] = new
    return room, room[..., :end, :]


@block
def grouped_attention(model: Any) -> Iterator[bool]:
    """Let the query heads that share keys and values attend together in the body, if the model uses
    torch's attention. Yields whether it does."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    model = unwrapped(model)
    config = model.config
    # Latents in a cache are multiplied by weights before the attention, in the weights' dtype.
    has_latents = getattr(config, "kv_lora_rank", None) is not None
    if config._attn_implementation != _PLAIN or config.sub_configs or has_latents:
        yield False
        return
    AttentionInterface.register(_NAME, _grouped)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    with at_exit(partial(model.set_attn_implementation, _PLAIN)):
        # Models that do not look up their attention stay as they are.
        model.set_attn_implementation(_NAME)
        yield config._attn_implementation == _NAME


def _grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as in transformers' interface: ``query`` is ``[B, heads, tokens, dim]``.

    Keys and values of a cache may have another dtype.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, tokens, _ = query.shape
    groups = heads // key.shape[1]
    inputs = query.to(key.dtype), key, value
    if (
        groups == 1
        or attention_mask is None
        # The heads' masks differ.
        or attention_mask.shape[1] > 1
        or options.get("position_bias") is not None
    ):
        output, _ = sdpa_attention_forward(module, *inputs, attention_mask, **options)
        return output.to(query.dtype), None
    packed = inputs[0].reshape(batch, -1, groups * tokens, query.shape[-1])
    output = scaled_dot_product_attention(
        packed,
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        scale=options.get("scaling"),
    )
    output = output.reshape(batch, heads, tokens, -1).transpose(1, 2)
    return output.contiguous().to(query.dtype), None
