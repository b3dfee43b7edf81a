"""Attention of a few tokens to many before them, without a copy of all keys and values.

Query heads may share a head of keys and values. For several tokens behind a cache, transformers
then repeats keys and values for each query head: behind 2,000 tokens that takes as long as all
else. Here the queries of the heads that share one become more queries of a single head.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from hullft_ops.ttft.models.checks import unwrapped
from hullft_ops.ttft.signals import at_exit, signal_safe

_NAME = "hullft_grouped"
_PLAIN = "sdpa"


@signal_safe
def grouped_attention(model: Any) -> Iterator[bool]:
    """Let a model attend so in the body, if it uses torch's attention. Yields whether it does."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    model = unwrapped(model)
    config = model.config
    if config._attn_implementation != _PLAIN or config.sub_configs:
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
