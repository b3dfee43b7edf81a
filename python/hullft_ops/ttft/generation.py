"""Continuing a prompt."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer, check_text
from hullft_ops.ttft.modes import modes_restored

# What transformers takes when nobody says; named here since room is made for it.
_NEW_TOKENS = 20


def continuation(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    context: int,
    **generate_kwargs: Any,
) -> str:
    """What the model writes after ``prompt``, special tokens left out. Runs in eval mode.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompt: of a longer prompt the last tokens are read that leave room for the new ones; a
            special token that the tokenizer appends to it is not.
        context: the model's, in tokens.
        generate_kwargs: for ``model.generate``; ``max_new_tokens`` is 20 unless given, there or in
            a ``generation_config``.

    Raises:
        TypeError: prompt is not a str.
        ValueError: as `tokens_to_continue`.
        RuntimeError: another thread adapts the model, or one that shares its modules.
    """
    tokens = tokens_to_continue(tokenizer, prompt, context, generate_kwargs)
    generate_kwargs["max_new_tokens"] = _new_tokens(generate_kwargs)
    # A configuration may ask for more than the tokens.
    generate_kwargs["return_dict_in_generate"] = False
    ids = torch.tensor([tokens], device=model.device)
    if tokenizer.pad_token_id is None:
        generate_kwargs.setdefault("pad_token_id", tokenizer.eos_token_id)
    with modes_restored(model), torch.no_grad():
        model.train(False)
        generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
        output = generate(input_ids=ids, attention_mask=torch.ones_like(ids), **generate_kwargs)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def tokens_to_continue(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, context: int, generate_kwargs: dict[str, Any]
) -> list[int]:
    """What `continuation` reads of the prompt.

    Raises:
        TypeError: prompt is not a str, or ``max_new_tokens`` no int.
        ValueError: ``max_new_tokens`` leaves no room for the prompt, ``max_length`` is given or
            more than tokens asked for, or the prompt has no token or is not valid Unicode.
    """
    check_text("generate", "prompt", prompt)
    if generate_kwargs.get("max_length") is not None:
        raise ValueError(
            "generate: max_new_tokens must be given in place of max_length, got max_length "
            f"{generate_kwargs['max_length']}"
        )
    if generate_kwargs.get("return_dict_in_generate"):
        raise ValueError(
            "generate: return_dict_in_generate must be False, the continuation is all it gives"
        )
    new = _new_tokens(generate_kwargs)
    if not 1 <= new < context:
        raise ValueError(
            f"generate: max_new_tokens must be in 1..{context - 1} with a context of "
            f"{context}, got {new}"
        )
    check_integer("generate", "max_new_tokens", new, 1)
    tokens = _continued(tokenizer, prompt)
    if not tokens:
        raise ValueError(f"generate: prompt must have a token, got {prompt[:20]!r}")
    return tokens[new - context :]


def _new_tokens(generate_kwargs: dict[str, Any]) -> int:
    config = generate_kwargs.get("generation_config")
    given = (generate_kwargs.get("max_new_tokens"), getattr(config, "max_new_tokens", None))
    return next((new for new in given if new is not None), _NEW_TOKENS)


def _continued(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """The prompt's tokens without those that the tokenizer appends to end a text."""
    encoding = tokenizer(prompt, return_special_tokens_mask=True, verbose=False)
    tokens, added = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
    # One is left of an empty prompt: the token that opens a text can be continued.
    while len(tokens) > 1 and added.pop():
        tokens.pop()
    return tokens
