"""How many tokens a model can read at once."""

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
    """Tokens per forward pass: ``max_length``, else the model's context, else the tokenizer's.

    Raises:
        TypeError: max_length is not an int.
        ValueError: max_length is below 2 or above the model's context; or it is None and neither
            the model nor the tokenizer has a limit; or a PEFT model's virtual tokens have logits.
    """
    limit = _model_limit(function, model)
    if max_length is not None:
        max_length = check_integer(function, "max_length", max_length, 2)
        if limit is not None and max_length > limit:
            raise ValueError(
                f"{function}: max_length is {max_length}, the model's context is {limit}"
            )
        return max_length
    known = known_context(function, model, tokenizer)
    if known is None:
        raise ValueError(
            f"{function}: max_length must be given, neither model nor tokenizer has a limit"
        )
    return known


def known_context(
    function: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> int | None:
    """The model's context, else the tokenizer's, or None if neither has a limit."""
    limit = _model_limit(function, model)
    if limit is None and tokenizer.model_max_length < _NO_LIMIT:
        limit = int(tokenizer.model_max_length)
    return limit


def scored_context(
    function: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
) -> int | None:
    """The ``max_length`` to score with, if ``max_length`` limits the texts to train on.

    None if the model or the tokenizer has a limit: the length of training texts limits what the
    model reads only if nothing else does.
    """
    return max_length if known_context(function, model, tokenizer) is None else None


def _model_limit(function: str, model: "PreTrainedModel") -> int | None:
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in _POSITIONS)
    # Models without a limit may say -1.
    limit = next((positions for positions in found if positions and positions > 0), None)
    virtual = virtual_tokens(function, model)
    return None if limit is None else limit - virtual - _positions_before_the_first(model)


def virtual_tokens(function: str, model: "PreTrainedModel") -> int:
    """Positions that a PEFT method takes for its own tokens.

    Raises:
        ValueError: they have logits, which nothing here could tell apart from the text's.
    """
    adapter: Any = getattr(model, "active_peft_config", None)
    if not getattr(adapter, "is_prompt_learning", False):
        return 0
    if adapter.peft_type != "PREFIX_TUNING":
        raise ValueError(
            f"{function}: model must not have virtual tokens among its logits, as PEFT's "
            f"{adapter.peft_type.value} has"
        )
    return int(adapter.num_virtual_tokens)


def _positions_before_the_first(model: "PreTrainedModel") -> int:
    """Rows of RoBERTa's position embedding that belong to padding, so no token can use them."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
