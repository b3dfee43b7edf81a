"""What transformers keeps of the tokens that a model has read."""

import copy
import inspect
from typing import Any

import torch

from hullft_ops.ttft.models.checks import unwrapped


def cache_keyword(model: Any) -> str:
    """What this version of transformers calls a cache."""
    parameters = inspect.signature(unwrapped(model).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def keeps_keys_and_values(cache: Any) -> bool:
    """Whether a cache keeps nothing but keys and values, and its layers can be copied."""
    from transformers.cache_utils import (
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
    )

    if type(cache) is not DynamicCache:
        return False
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in plain for layer in cache.layers)


def copied(cache: Any) -> Any:
    """A copy of a cache of keys and values, which grows by itself."""
    # Layers of these kinds put longer tensors in place of theirs, so the copy may share them.
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def convert(cache: Any, dtype: torch.dtype) -> None:
    """Change the dtype of a cache of keys and values."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys.to(dtype), layer.values.to(dtype)


def can_be_cut(cache: Any) -> bool:
    """Whether the last tokens can be taken out of a cache again, whatever its length."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)
