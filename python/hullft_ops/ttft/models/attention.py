"""Reading one text: without a mask, and padded to one of a few lengths."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from hullft_ops.ttft.models.cache import cache_keyword, empty_cache, is_plain
from hullft_ops.ttft.models.checks import unwrapped

# Padded texts have a multiple of this many tokens.
_BUCKET = 64
# Kinds of RoPE whose frequencies depend on how long a text is.
_CHANGING_ROPE = ("dynamic", "longrope")
_PADDING_CHECK = "warn_if_padding_and_no_attention_mask"


def unmasked(base: nn.Module) -> dict[str, Any]:
    """Arguments with which the base model reads one text and transformers makes no mask for it.

    Without a cache it would ask the device whether texts are packed, and wait for the answer. This
    cache stays empty. There are no such arguments if the model keeps more than keys and values.
    """
    cache = empty_cache(base)
    if not is_plain(cache):
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


def can_pad(model: "PreTrainedModel") -> bool:
    """Whether a model makes the same of a text if tokens stand behind it."""
    from transformers.cache_utils import DynamicLayer

    inner = unwrapped(model)
    config = inner.config.get_text_config()
    rope = (
        f"{getattr(config, 'rope_parameters', '')}{getattr(config, 'rope_scaling', '')}"
    )
    if any(kind in rope for kind in _CHANGING_ROPE):
        return False
    return all(type(layer) is DynamicLayer for layer in empty_cache(inner).layers)


def padded_length(length: int, context: int | None) -> int:
    """The next multiple of 64 tokens, or the model's window if that is less."""
    rounded = -(-length // _BUCKET) * _BUCKET
    return rounded if context is None else max(length, min(rounded, context))


def padded(tokens: Sequence[int], length: int) -> list[int]:
    """The text, and up to ``length`` its last token with all bits inverted, which marks padding."""
    # The model reads that token there: no other row of the embedding gets a gradient.
    return [*tokens, *[~tokens[-1]] * (length - len(tokens))]


def without_marks(text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model reads of a `padded` text, int64 ``[T]``, and the share of each loss in their
    mean, float64 ``[T - 1]``: 0 for padding."""
    is_real = text >= 0
    shares = is_real[1:].double()
    return torch.where(is_real, text, ~text), shares / shares.sum()


def on_device(
    texts: Sequence[Sequence[int]], device: torch.device
) -> list[torch.Tensor]:
    """The texts, int64, after one copy of all of them, for which nobody waits on CUDA."""
    flat = torch.tensor([*chain.from_iterable(texts)], dtype=torch.int64, device="cpu")
    if device.type == "cuda":
        flat = flat.pin_memory()
    there = flat.to(device, non_blocking=True)
    return list(torch.split(there, [len(text) for text in texts]))
