"""How many tokens a model can read at once."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer

# A tokenizer without a limit says 1e30.
_NO_LIMIT = 10**9
# The names that configurations use; BLOOM's and ChatGLM's checkpoints say seq_length.
_POSITIONS = ("max_position_embeddings", "max_seq_len", "seq_length")


def context_length(
    function: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
) -> int:
    """Tokens per forward pass: ``max_length``, else the model's context, else the tokenizer's."""
    if max_length is None:
        known = known_context(function, model, tokenizer)
        if known is None:
            raise ValueError(
                f"{function}: max_length must be given, neither model nor tokenizer has a limit"
            )
        return known
    limit = model_limit(function, model)
    max_length = check_integer(function, "max_length", max_length, 2)
    if limit is not None and max_length > limit:
        raise ValueError(
            f"{function}: max_length is {max_length}, the model's context is {limit}"
        )
    return max_length


def known_context(
    function: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> int | None:
    """The model's context, else the tokenizer's, or None if neither has a limit."""
    limit = model_limit(function, model)
    if limit is None and tokenizer.model_max_length < _NO_LIMIT:
        limit = int(tokenizer.model_max_length)
    return limit


def model_limit(function: str, model: "PreTrainedModel") -> int | None:
    """How many tokens the model can read at once; None if its configuration does not say."""
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in _POSITIONS)
    # Models without a limit may say -1.
    limit = next(
        (positions for positions in found if positions and positions > 0), None
    )
    virtual = virtual_tokens(function, model)
    if limit is None:
        return None
    # Rows of RoBERTa's position embedding that belong to padding, so no token can use them.
    tables = (
        m for name, m in model.named_modules() if name.endswith("position_embeddings")
    )
    padding = next((m.padding_idx for m in tables if isinstance(m, nn.Embedding)), None)
    return int(limit) - virtual - (0 if padding is None else padding + 1)


def virtual_tokens(function: str, model: "PreTrainedModel") -> int:
    """Positions that a PEFT method takes for its own tokens. ValueError if those have logits, which
    nothing here could tell apart from the text's."""
    adapter: Any = getattr(model, "active_peft_config", None)
    if not getattr(adapter, "is_prompt_learning", False):
        return 0
    if adapter.peft_type != "PREFIX_TUNING":
        raise ValueError(
            f"{function}: model must not have virtual tokens among its logits, as PEFT's "
            f"{adapter.peft_type.value} has"
        )
    return int(adapter.num_virtual_tokens)


def unwrapped(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model without PEFT's wrapper."""
    unwrap: Callable[[], PreTrainedModel] | None = getattr(
        model, "get_base_model", None
    )
    return model if unwrap is None else unwrap()
