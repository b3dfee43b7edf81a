"""Continuing a prompt."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_text
from hullft_ops.ttft.modes import modes_restored

# What transformers takes when nobody says; named here since room is made for it.
_NEW_TOKENS = 20


def continuation(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    max_length: int,
    **generate_kwargs: Any,
) -> str:
    """What the model writes after ``prompt``, special tokens left out. Runs in eval mode.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompt: of a longer prompt the last tokens are read that leave room for the new ones; a
            special token that the tokenizer appends to it is not.
        max_length: the model's context, in tokens.
        generate_kwargs: for ``model.generate``; ``max_new_tokens`` is 20 unless given.

    Raises:
        TypeError: prompt is not a str.
        ValueError: ``max_new_tokens`` leaves no room for the prompt, or the prompt has no token or
            is not valid Unicode.
    """
    check_text("generate", "prompt", prompt)
    new = generate_kwargs.setdefault("max_new_tokens", _NEW_TOKENS)
    if not 1 <= new < max_length:
        raise ValueError(
            f"generate: max_new_tokens must be in 1..{max_length - 1} with a context of "
            f"{max_length}, got {new}"
        )
    tokens = _continued(tokenizer, prompt)
    if not tokens:
        raise ValueError(f"generate: prompt must have a token, got {prompt[:20]!r}")
    ids = torch.tensor([tokens[new - max_length :]], device=model.device)
    if tokenizer.pad_token_id is None:
        generate_kwargs.setdefault("pad_token_id", tokenizer.eos_token_id)
    with modes_restored(model), torch.no_grad():
        model.train(False)
        generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
        output = generate(input_ids=ids, attention_mask=torch.ones_like(ids), **generate_kwargs)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def _continued(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """The prompt's tokens without those that the tokenizer appends to end a text."""
    encoding = tokenizer(prompt, return_special_tokens_mask=True, verbose=False)
    tokens, added = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
    # One is left of an empty prompt: the token that opens a text can be continued.
    while len(tokens) > 1 and added.pop():
        tokens.pop()
    return tokens
