"""The loss of a causal language model on one text."""

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def next_token_losses(model: "PreTrainedModel", tokens: torch.Tensor) -> torch.Tensor:
    """The negative log-likelihood of every token but the first, in nats, given those before it.

    Args:
        model: a causal language model.
        tokens: int64 ``[T]``, T at least 2, within the model's context.

    Returns:
        ``[T - 1]``, float64 for a float64 model and float32 for all others.
    """
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(precise[:-1], tokens[1:], reduction="none")
