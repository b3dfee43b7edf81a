"""Continuing prompts, behind retrieved passages."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hullft_ops._checks import check_integer, check_text
from hullft_ops.ttft.errors import first_line
from hullft_ops.ttft.ngrams import NgramProcessor
from hullft_ops.ttft.reader import Context, Reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# transformers' default. It is named here because the prompt must leave room for it.
NEW_TOKENS = 20
# Messages with a "role" and a "content", as chat templates take them.
Conversation = list[dict[str, Any]]
Prompt = str | Conversation


def continue_prompt(
    reader: Reader,
    prompt: Prompt,
    *,
    context: Context | None = None,
    **options: Any,
) -> str:
    """What the model writes after a prompt; see `continue_prompts`."""
    contexts = [context or Context()]
    [text] = continue_prompts(reader, [prompt], contexts, **options)
    return text


def continue_prompts(
    reader: Reader,
    prompts: Sequence[Prompt],
    contexts: Sequence[Context],
    *,
    chat: bool = False,
    **generate_kwargs: Any,
) -> list[str]:
    """What the model writes after each prompt, in one batch, without special tokens.

    Args:
        reader: the model, which generates in eval mode.
        prompts: texts or conversations. Of one that is too long, the model reads the last tokens.
        contexts: what was retrieved for each prompt. The farthest passages go until the rest fits.
        chat: whether a text is a user's message.
        generate_kwargs: for ``model.generate``; ``max_new_tokens`` defaults to 20.

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
        _row(reader, prompt, context, room, chat=chat)
        for prompt, context in zip(prompts, contexts, strict=True)
    ]
    ngrams = [context.ngrams for context in contexts]
    if any(ngrams):
        processors = generate_kwargs.get("logits_processor") or []
        mixture = NgramProcessor(ngrams, [len(body) for _, body in rows])
        generate_kwargs["logits_processor"] = [*processors, mixture]
    ids = [[*head, *body] for head, body in rows]
    return reader.generate(ids, contexts, **generate_kwargs)


def _row(
    reader: Reader, prompt: Prompt, context: Context, room: int, *, chat: bool
) -> tuple[list[int], list[int]]:
    """The tokens that the model continues, at most ``room``: of passages, and of the prompt."""
    if chat or isinstance(prompt, list):
        text = _chat_behind(reader, prompt, context, room)
        context = Context()
    else:
        text = prompt
        check_text("generate", "prompt", text)
    tokens = reader.tokens(text)
    if not tokens.ids:
        raise ValueError(f"generate: prompt must have a token, got {text[:20]!r}")
    head = context.before(tokens.ids, tokens.opening, room)
    body = tokens.ids[tokens.opening :] if head else tokens.ids
    return head, body[-(room - len(head)) :]


def _chat_behind(reader: Reader, prompt: Prompt, context: Context, room: int) -> str:
    """The conversation in the chat template. As many of the nearest passages as fit stand before
    the last message of the user."""
    messages, question = conversation(prompt)
    content = question["content"]
    for first in range(len(context.texts) + 1):
        question["content"] = "".join([*context.texts[first:], content])
        text = chat_prompt(reader.tokenizer, messages)
        if len(reader.tokens(text).ids) <= room:
            break
    return text


def conversation(prompt: Prompt) -> tuple[Conversation, dict[str, Any]]:
    """A copy of the messages, and the last one of the user. A text is one message."""
    if not isinstance(prompt, list):
        check_text("generate", "prompt", prompt)
        prompt = [{"role": "user", "content": prompt}]
    try:
        messages = [dict(message) for message in prompt]
        [*_, question] = [message for message in messages if message["role"] == "user"]
    except (KeyError, TypeError, ValueError) as error:
        raise TypeError(
            "generate: a conversation must have messages with a role, and one of the user"
        ) from error
    check_text("generate", "content of the user's message", question.get("content"))
    return messages, question


def chat_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> str:
    """A conversation, or a user's message, in the tokenizer's chat template, up to where the answer
    begins.

    ValueError if the tokenizer has no template, or its template fails.
    """
    messages, _ = conversation(prompt)
    if not tokenizer.chat_template:
        raise ValueError("chat: the model's tokenizer has no chat template")
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
