"""What a model must be before it is trained or scored, and what tells it from every other."""

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer
from hullft_ops.ttft.models.memory import is_out_of_memory
from hullft_ops.ttft.models.precision import reading
from hullft_ops.ttft.restore import unwrapped
from hullft_ops.ttft.validation import first_line

# A tokenizer without a limit says 1e30.
_NO_LIMIT = 10**9
# The names that configurations use for the window; the last is BLOOM's.
_POSITIONS = ("max_position_embeddings", "max_seq_len", "seq_length")
# The largest relative rounding of float32 logits: a mixture of experts multiplies all tokens of an
# expert at once, so later tokens may change how an earlier one is rounded.
_ROUNDING = 1e-4


def check_causal(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """ValueError unless the model is a causal language model with every id of the tokenizer.

    A causal model's logits for the first of two tokens do not depend on the second. RuntimeError if
    it is in use elsewhere.
    """
    highest = highest_id(tokenizer)
    embedding: Any = model.get_input_embeddings()
    count = getattr(embedding, "num_embeddings", highest + 1)
    if highest >= count:
        raise ValueError(
            f"model must have every id of the tokenizer, up to {highest}, got "
            f"{type(unwrapped(model)).__name__} with {count}: load the tokenizer that belongs to it"
        )
    if any(
        adapter.is_prompt_learning
        for adapter in getattr(model, "peft_config", {}).values()
    ):
        raise _refusal(model, "has tokens of PEFT before each text")
    first, other = highest // 2, highest // 2 + 1
    tokens = torch.tensor([[first, first], [first, other]], device=model.device)
    with reading(model, None):
        try:
            output = model(input_ids=tokens, use_cache=False)
        # Its configuration may be impossible.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = f"cannot run on input_ids alone ({first_line(error)})"
            raise _refusal(model, reason) from error
    logits: Any = getattr(output, "logits", None)
    if logits is None or logits.shape[:-1] != tokens.shape:
        raise _refusal(model, "gives no logits of each token")
    if not agree(*logits[:, 0]):
        raise _refusal(model, "sees the tokens after the one that it reads")


def agree(logits: Tensor, expected: Tensor, roundings: int = 4) -> bool:
    """Whether logits differ by no more than so many roundings of the largest.

    Logits of NaN do not differ: their loss is refused.
    """
    rounding = max(_ROUNDING, roundings * torch.finfo(logits.dtype).eps)
    difference = (logits - expected).abs().max()
    return not difference > rounding * expected.abs().max()


def highest_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The highest id of the vocabulary, which may have gaps."""
    return max(tokenizer.get_vocab().values())


def _refusal(model: "PreTrainedModel", reason: str) -> ValueError:
    return ValueError(
        "model must be a causal language model, as AutoModelForCausalLM loads, got "
        f"{type(unwrapped(model)).__name__}, which {reason}"
    )


def text_window(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
) -> int:
    """Tokens per forward pass: ``max_length``, or the model's window if None."""
    limit = model_window(model, tokenizer)
    if max_length is None:
        if limit is None:
            raise ValueError(
                "max_length must be given: neither the model nor its tokenizer has a limit"
            )
        return limit
    if limit is not None and max_length > limit:
        raise ValueError(f"max_length is {max_length}, the model's window is {limit}")
    return check_integer("text_window", "max_length", max_length, 2)


def model_window(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> int | None:
    """The model's window in tokens, else the tokenizer's limit; None if neither has one."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # A longer text rotates all keys by other angles, also the cached ones.
        return int(rope["original_max_position_embeddings"])
    for name in _POSITIONS:
        positions = getattr(config, name, None)
        # Models without a limit may say -1.
        if positions is not None and positions > 0:
            return int(positions)
    limit = tokenizer.model_max_length
    return int(limit) if limit < _NO_LIMIT else None


def model_identity(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and values of parameters and persistent buffers.

    In hexadecimal digits. It does not depend on the device. A GB takes one to two seconds.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict(keep_vars=True).items():
        name = name.replace("_orig_mod.", "")
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # On the CPU this copies nothing, if the tensor is contiguous.
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
