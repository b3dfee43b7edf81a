"""Continuing prompts, behind retrieved passages."""

from collections.abc import Sequence
from typing import Any

from hullft_ops._checks import check_integer
from hullft_ops.ttft.chat import Prompt, prompt_tokens
from hullft_ops.ttft.decoding import Row, written
from hullft_ops.ttft.prefix import Prefix
from hullft_ops.ttft.reader import Reader

# transformers' default. It is named here because the prompt must leave room for it.
NEW_TOKENS = 20


def continue_prompt(
    reader: Reader,
    prompt: Prompt,
    *,
    prefix: Prefix | None = None,
    **options: Any,
) -> str:
    """What the model writes after a prompt; see `continue_prompts`."""
    prefixes = [prefix or Prefix()]
    [text] = continue_prompts(reader, [prompt], prefixes, **options)
    return text


def continue_prompts(
    reader: Reader,
    prompts: Sequence[Prompt],
    prefixes: Sequence[Prefix],
    *,
    chat: bool = False,
    **generate_kwargs: Any,
) -> list[str]:
    """What the model writes after each prompt, in one batch, without special tokens.

    Args:
        reader: the model, which generates in eval mode.
        prompts: texts or conversations. Of one that is too long, the model reads the last tokens.
        prefixes: what was prepared for each prompt. The farthest passages go until the rest fits.
        chat: whether a text is a user's message.
        generate_kwargs: for ``model.generate``; ``max_new_tokens`` defaults to 20, and
            ``token_healing`` to True: the end of a prompt is written again from a boundary of
            tokens, held to its characters.

    Raises:
        TypeError, ValueError: a prompt is neither, or has no token, ``max_new_tokens`` leaves no
            room for it, an argument asks for more than one continuation, or there is no chat
            template.
        RuntimeError: the model is in use elsewhere.
    """
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
    check_integer("generate", "max_new_tokens", new_tokens, 1, reader.window - 1)
    room = reader.window - new_tokens
    rows = [
        _row(reader, prompt, prefix, room, chat=chat)
        for prompt, prefix in zip(prompts, prefixes, strict=True)
    ]
    return written(reader, rows, prefixes, **generate_kwargs)


def _row(
    reader: Reader, prompt: Prompt, prefix: Prefix, room: int, *, chat: bool
) -> Row:
    """The tokens that the model continues, at most ``room``."""
    tokens = prompt_tokens(
        reader, prompt, chat=chat, has_passages=bool(prefix.passages)
    )
    head = prefix.before(tokens.ids, tokens.opening, room)
    body = tokens.ids[tokens.opening :] if head else tokens.ids
    body = body[-(room - len(head)) :]
    return Row([*head, *body], prompt=len(body))
