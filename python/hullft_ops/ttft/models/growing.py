"""A cache that tokens are entered in, where transformers' own copies all that it holds."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

# So many more tokens are made room for at once.
_ROOM = 256


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
