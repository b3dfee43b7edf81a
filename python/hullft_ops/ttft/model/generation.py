"""Continuing a prompt."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer, check_text
from hullft_ops.ttft.model.patches import eval_mode
from hullft_ops.ttft.model.prefix import Prefix, fitting, opened_tokens, prefix_room

# transformers' default. It is named here because the prompt must leave room for it.
_NEW_TOKENS = 20


def continuation(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    context: int,
    *,
    prefix: Prefix | None = None,
    **generate_kwargs: Any,
) -> str:
    """See `TestTimeFinetuner.generate`. The first texts of ``prefix`` go until the rest fits."""
    prefix = prefix or Prefix()
    tokens = tokens_to_continue(
        tokenizer, prompt, context, generate_kwargs, prefix.texts
    )
    generate_kwargs["max_new_tokens"] = _new_tokens(generate_kwargs)
    cached = prefix.cached
    if (
        cached
        and cached.steers(model, generate_kwargs)
        and cached.begins(model, tokens)
    ):
        generate_kwargs |= cached.arguments(model)
    # A configuration may request more than the tokens.
    generate_kwargs["return_dict_in_generate"] = False
    ids = torch.tensor([tokens], device=model.device)
    if tokenizer.pad_token_id is None:
        generate_kwargs.setdefault("pad_token_id", tokenizer.eos_token_id)
    with eval_mode(model), torch.no_grad():
        generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
        output = generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **generate_kwargs
        )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def tokens_to_continue(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    context: int,
    generate_kwargs: dict[str, Any],
    texts: Sequence[Sequence[int]] = (),
) -> list[int]:
    """The tokens that `continuation` reads: of the prompt, and of the texts before it."""
    check_text("generate", "prompt", prompt)
    if (length := generate_kwargs.get("max_length")) is not None:
        raise ValueError(
            f"generate: max_new_tokens must be given in place of max_length, got {length}"
        )
    if generate_kwargs.get("return_dict_in_generate"):
        raise ValueError(
            "generate: return_dict_in_generate must be False: only the continuation is returned"
        )
    if (count := generate_kwargs.get("num_return_sequences") or 1) != 1:
        raise ValueError(f"generate: num_return_sequences must be 1, got {count}")
    new = check_integer("generate", "max_new_tokens", _new_tokens(generate_kwargs), 0)
    if not 1 <= new < context:
        allowed = f"1..{context - 1} with a context of {context}"
        raise ValueError(f"generate: max_new_tokens must be in {allowed}, got {new}")
    tokens, opening = opened_tokens(tokenizer, prompt)
    if not tokens:
        raise ValueError(f"generate: prompt must have a token, got {prompt[:20]!r}")
    room = prefix_room(context - new, len(tokens), opening)
    kept = fitting(reversed(texts), room)[::-1]
    if not kept:
        return tokens[new - context :]
    head = [*tokens[:opening], *chain.from_iterable(kept)]
    return [*head, *tokens[opening:][new + len(head) - context :]]


def _new_tokens(generate_kwargs: dict[str, Any]) -> int:
    config = generate_kwargs.get("generation_config")
    given = (
        generate_kwargs.get("max_new_tokens"),
        getattr(config, "max_new_tokens", None),
    )
    return next((new for new in given if new is not None), _NEW_TOKENS)
