"""How many tokens a model reads at once."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer

# A tokenizer that knows no limit says 1e30.
_NO_LIMIT = 10**9


def context_length(
    function: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
) -> int:
    """Tokens per forward pass: ``max_length``, or else the model's context, or the tokenizer's.

    Raises:
        TypeError: max_length is not an int.
        ValueError: max_length is below 2 or above the model's context, or is not given and
            neither the model nor the tokenizer has a limit.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if max_length is not None:
        check_integer(function, "max_length", max_length, 2)
        if limit is not None and max_length > limit:
            raise ValueError(
                f"{function}: max_length is {max_length}, the model's context is {limit}"
            )
        return max_length
    if limit is None and tokenizer.model_max_length < _NO_LIMIT:
        limit = tokenizer.model_max_length
    if limit is None:
        raise ValueError(
            f"{function}: max_length must be given, neither model nor tokenizer has a limit"
        )
    return int(limit)
