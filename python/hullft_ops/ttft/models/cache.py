"""What transformers keeps of the tokens that a model has read."""

import copy
import inspect
from typing import Any

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

    from hullft_ops.ttft.models.growing import GrowingLayer

    if type(cache) is not DynamicCache:
        return False
    plain = (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer)
    return all(type(layer) in plain for layer in cache.layers)


def copied(cache: Any) -> Any:
    """A copy of a cache of keys and values, which grows by itself."""
    from transformers.cache_utils import DynamicLayer

    from hullft_ops.ttft.models.growing import GrowingLayer

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
    from hullft_ops.ttft.models.growing import GrowingLayer

    return all(type(layer) is GrowingLayer for layer in cache.layers)
