"""Continuing prompts, behind retrieved passages."""

from collections.abc import Mapping, Sequence
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any

from hullft_ops._checks import check_integer, check_text
from hullft_ops.ttft.errors import first_line
from hullft_ops.ttft.reader import Context, Reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# transformers' default. It is named here because the prompt must leave room for it.
NEW_TOKENS = 20

# Messages with a "role" and a "content", as a chat template takes them.
Conversation = Sequence[Mapping[str, str]]
Prompt = str | Conversation


def continue_prompt(
    reader: Reader,
    prompt: Prompt,
    *,
    context: Context | None = None,
    chat: bool = False,
    **generate_kwargs: Any,
) -> str:
    """What the model writes after ``prompt``, without special tokens.

    Args:
        reader: the model, which generates in eval mode.
        prompt: a text or a conversation. Of one that is too long, the model reads the last tokens.
        context: retrieved passages before the prompt. The farthest go until the rest fits.
        chat: whether a text is a user's message.
        generate_kwargs: for ``model.generate``; ``max_new_tokens`` defaults to 20.

    Raises:
        TypeError, ValueError: the prompt has no text or no token, ``max_new_tokens`` leaves no room
            for it, an argument asks for more than one continuation, or there is no chat template.
        RuntimeError: the model is in use elsewhere.
    """
    context = context or Context()
    options = checked_options(reader, generate_kwargs)
    room = reader.window - options["max_new_tokens"]
    ids = prompt_ids(reader, prompt, context, room, chat=chat)
    [continuation] = reader.generate([ids], context, **options)
    return continuation


def checked_options(reader: Reader, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments for ``model.generate``, with ``max_new_tokens``. Raises as `continue_prompt`."""
    options = {"max_new_tokens": NEW_TOKENS} | generate_kwargs
    for name, value in {
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
    }.items():
        if options.setdefault(name, value) != value:
            raise ValueError(
                f"generate: {name} must be {value}: only one continuation is returned"
            )
    if options.get("max_length") is not None:
        raise ValueError("generate: max_new_tokens must be passed, not max_length")
    new_tokens = options["max_new_tokens"]
    check_integer("generate", "max_new_tokens", new_tokens, 1, reader.window - 1)
    return options


def prompt_ids(
    reader: Reader, prompt: Prompt, context: Context, room: int, *, chat: bool = False
) -> list[int]:
    """The tokens that the model continues: at most ``room`` of a prompt, behind passages.

    In a chat the passages stand within the last message of the user. Raises as `continue_prompt`.
    """
    if isinstance(prompt, str) and not chat:
        text = prompt
        check_text("generate", "prompt", text)
    else:
        text = _chat_behind(reader, prompt, context, room)
        context = Context()
    tokens = reader.tokens(text)
    if not tokens.ids:
        raise ValueError(f"generate: prompt must have a token, got {text[:20]!r}")
    head = context.before(tokens.ids, tokens.opening, room)
    body = tokens.ids[tokens.opening :] if head else tokens.ids
    return [*head, *body[-(room - len(head)) :]]


def _chat_behind(reader: Reader, prompt: Prompt, context: Context, room: int) -> str:
    """The conversation in the chat template, behind as many of the nearest passages as fit."""
    messages = _messages(prompt)
    question = messages[_place_of_question(messages)]
    content = question["content"]
    for first in range(len(context.texts) + 1):
        question["content"] = "".join([*context.texts[first:], content])
        text = chat_prompt(reader.tokenizer, messages)
        if len(reader.tokens(text).ids) <= room:
            break
    return text


def question_of(prompt: Prompt) -> str:
    """What passages are retrieved for: a text, or the last message of the user.

    TypeError or ValueError if the prompt is neither a text nor a conversation.
    """
    messages = _messages(prompt)
    content: str = messages[_place_of_question(messages)]["content"]
    return content


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    if not isinstance(prompt, list | tuple):
        check_text("generate", "prompt", prompt)
        return [{"role": "user", "content": prompt}]
    for message in prompt:
        is_message = isinstance(message, Mapping)
        if not (is_message and {"role", "content"} <= message.keys()):
            raise TypeError(
                "generate: a message must have a role and a content, got "
                f"{shortened(message)}"
            )
        check_text("generate", "a message's content", message["content"])
    return [dict(message) for message in prompt]


def _place_of_question(messages: Conversation) -> int:
    places = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not places:
        raise ValueError("generate: a conversation must have a message of the user")
    return places[-1]


def chat_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> str:
    """A conversation, or a user's message, in the tokenizer's chat template, up to where the answer
    begins.

    ValueError if the tokenizer has no template, or its template fails.
    """
    messages = _messages(prompt)
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
