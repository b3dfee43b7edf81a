"""What transformers keeps of the tokens that a model has read."""

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

    if type(cache) is not DynamicCache:
        return False
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in plain for layer in cache.layers)
