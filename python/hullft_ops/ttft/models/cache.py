"""What transformers keeps of the tokens that a model has read, and reading without a mask."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from hullft_ops.ttft.models.checks import unwrapped

_PADDING_CHECK = "warn_if_padding_and_no_attention_mask"


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


def unmasked(base: nn.Module) -> dict[str, Any]:
    """Arguments with which the base model reads one text and transformers makes no mask for it.

    Without a cache it would ask the device whether texts are packed, and wait for the answer. This
    cache stays empty. There are no such arguments if the model keeps more than keys and values.
    """
    from transformers.cache_utils import DynamicCache

    config: Any = base.config
    cache: Any = DynamicCache(config=config.get_text_config())
    if not keeps_keys_and_values(cache):
        return {}
    vars(cache)["update"] = lambda keys, values, *others, **named: (keys, values)
    return {cache_keyword(base): cache}


@contextmanager
def no_padding_check(base: nn.Module) -> Iterator[None]:
    """Keep transformers from looking for padding in a text, which would stall a GPU."""
    vars(base)[_PADDING_CHECK] = lambda *arguments: None
    try:
        yield
    finally:
        vars(base).pop(_PADDING_CHECK, None)
