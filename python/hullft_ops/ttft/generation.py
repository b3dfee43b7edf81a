"""Continuing a prompt, behind retrieved passages."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._checks import check_integer, check_text
from hullft_ops.ttft.errors import first_line
from hullft_ops.ttft.lock import exclusive
from hullft_ops.ttft.models.forwards import eval_mode
from hullft_ops.ttft.reading import ReadContext
from hullft_ops.ttft.support import opened_tokens, room_before

# transformers' default. It is named here because the prompt must leave room for it.
NEW_TOKENS = 20
# With other arguments, beams for example, transformers may refuse a cache that it did not make.
_TAKE_A_CACHE = {
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "stopping_criteria",
}


def continue_prompt(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    window: int,
    context: ReadContext | None = None,
    **generate_kwargs: Any,
) -> str:
    """What the model writes after ``prompt``, without special tokens.

    Args:
        model: a causal language model. It generates in eval mode.
        tokenizer: its tokenizer.
        prompt: a text. Of one that is too long, the model reads the last tokens.
        window: tokens that the model reads at once, new ones included.
        context: retrieved passages before the prompt. The first go until the rest fits.
        generate_kwargs: for ``model.generate``; ``max_new_tokens`` defaults to 20.

    Raises:
        TypeError, ValueError: the prompt is not a str or has no token, ``max_new_tokens`` leaves
            no room for it, or an argument asks for more than one continuation.
        RuntimeError: another thread adapts the model.
    """
    check_text("generate", "prompt", prompt)
    takes_cache = _takes_cache(model, generate_kwargs)
    for name, value in {
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
    }.items():
        if generate_kwargs.setdefault(name, value) != value:
            raise ValueError(
                f"generate: {name} must be {value}: only one continuation is returned"
            )
    if generate_kwargs.get("max_length") is not None:
        raise ValueError("generate: max_new_tokens must be passed, not max_length")
    new_tokens = generate_kwargs.setdefault("max_new_tokens", NEW_TOKENS)
    check_integer("generate", "max_new_tokens", new_tokens, 1, window - 1)
    passages = [] if context is None else context.passages
    tokens = _tokens_before(tokenizer, prompt, window - new_tokens, passages)
    if context is not None and takes_cache:
        generate_kwargs |= context.arguments(tokens)
    ids = torch.tensor([tokens], device=model.device)
    if tokenizer.pad_token_id is None:
        generate_kwargs.setdefault("pad_token_id", tokenizer.eos_token_id)
    with exclusive(model), eval_mode(model), torch.no_grad():
        generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
        output = generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **generate_kwargs
        )
    # Decoders of SentencePiece take the space from the beginning of what they decode.
    before = str(tokenizer.decode(tokens, skip_special_tokens=True))
    whole = str(tokenizer.decode(output[0], skip_special_tokens=True))
    return whole[len(before) :]


def chat_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    passages: Sequence[str],
    message: str,
    room: int,
) -> str:
    """A user's message in the tokenizer's chat template, up to where the answer begins.

    The passages stand before the message. The first go until the rest fits into ``room`` tokens.

    ValueError if the tokenizer has no template, or its template fails.
    """
    for first in range(len(passages)):
        text = _templated(tokenizer, "".join([*passages[first:], message]))
        if len(opened_tokens(tokenizer, text)[0]) <= room:
            return text
    return _templated(tokenizer, message)


def _templated(tokenizer: "PreTrainedTokenizerBase", message: str) -> str:
    if not tokenizer.chat_template:
        raise ValueError("chat: the model's tokenizer has no chat template")
    messages = [{"role": "user", "content": message}]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    # A template is a program, which may raise anything.
    except Exception as error:
        reason = first_line(error)
        raise ValueError(f"chat: the model's chat template: {reason}") from error
    # A tokenizer that opens every text with this token would write a second one.
    opens = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(text).removeprefix(tokenizer.bos_token if opens else "")


def _takes_cache(model: "PreTrainedModel", generate_kwargs: dict[str, Any]) -> bool:
    config: Any = model.generation_config
    has_beams = (config.num_beams or 1) > 1
    return (
        generate_kwargs.keys() <= _TAKE_A_CACHE
        and not has_beams
        and config.cache_implementation is None
    )


def _tokens_before(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    room: int,
    passages: Sequence[Sequence[int]],
) -> list[int]:
    """The last ``room`` tokens of the passages that fit and of the prompt."""
    tokens, opening = opened_tokens(tokenizer, prompt)
    if not tokens:
        raise ValueError(f"generate: prompt must have a token, got {prompt[:20]!r}")
    passages = list(passages)
    while sum(map(len, passages)) > room_before(len(tokens), opening, room):
        passages.pop(0)
    if not passages:
        return tokens[-room:]
    head = [*tokens[:opening], *chain.from_iterable(passages)]
    body = tokens[opening:]
    return [*head, *body[-(room - len(head)) :]]
