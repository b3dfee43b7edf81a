"""Reading one text: without a mask, and from the device's memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from hullft_ops.ttft.models.cache import (
    cache_keyword,
    empty_cache,
    keeps_keys_and_values,
)

_PADDING_CHECK = "warn_if_padding_and_no_attention_mask"


def unmasked(base: nn.Module) -> dict[str, Any]:
    """Arguments with which the base model reads one text and transformers makes no mask for it.

    Without a cache it would ask the device whether texts are packed, and wait for the answer. This
    cache stays empty. There are no such arguments if the model keeps more than keys and values.
    """
    cache = empty_cache(base)
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


def on_device(
    texts: Sequence[Sequence[int]], device: torch.device
) -> list[torch.Tensor]:
    """The texts, int64, after one copy of all of them. The host does not wait for CUDA."""
    flat = torch.tensor([*chain.from_iterable(texts)], dtype=torch.int64, device="cpu")
    if device.type == "cuda":
        flat = flat.pin_memory()
    there = flat.to(device, non_blocking=True)
    return list(torch.split(there, [len(text) for text in texts]))
