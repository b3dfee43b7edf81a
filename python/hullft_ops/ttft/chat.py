"""Conversations, as the tokenizer's chat template lays them out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Messages with a "role" and a "content", as chat templates take them.
Conversation = list[dict[str, Any]]
# Stands in the template where the user's last message begins, and is cut out again.
_MARK = "HullftPassagesStandHere"


def conversation(prompt: str | Conversation) -> tuple[Conversation, dict[str, Any]]:
    """A copy of the messages, and the last one of the user. A text is one message."""
    name = "content of the user's message" if isinstance(prompt, list) else "prompt"
    if not isinstance(prompt, list):
        prompt = [{"role": "user", "content": prompt}]
    try:
        messages = [dict(message) for message in prompt]
        [*_, last] = [message for message in messages if message["role"] == "user"]
    except (KeyError, TypeError, ValueError) as error:
        raise TypeError(
            "generate: a conversation must have messages with a role, and one of the user"
        ) from error
    content = last.get("content")
    if not isinstance(content, str):
        raise TypeError(f"generate: {name} must be a str, got {type(content).__name__}")
    return messages, last


def chat_text(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Conversation,
    last: dict[str, Any],
) -> tuple[str, int | None]:
    """A conversation in the tokenizer's chat template, up to where the answer begins.

    Returns:
        The text, and where the message ``last`` begins in it, after its spaces; None if the
        template does not write that once, as it is.

    Raises:
        ValueError: the tokenizer has no template, or its template fails.
    """
    content = last["content"]
    # A template may strip a message.
    spaces = len(content) - len(content.lstrip())
    marked = last | {"content": content[:spaces] + _MARK + content[spaces:]}
    others = [marked if message is last else message for message in messages]
    begin, *ends = _rendered(tokenizer, others).split(_MARK)
    if len(ends) == 1:
        return begin + ends[0], len(begin)
    return _rendered(tokenizer, messages), None


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: Conversation) -> str:
    if not tokenizer.chat_template:
        raise ValueError("chat: the model's tokenizer has no chat template")
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    # A template is a program, which may raise anything.
    except Exception as error:
        name = type(error).__name__
        raise ValueError(f"chat: the model's chat template: {name}: {error}") from error
    # A tokenizer that opens every text with this token would write a second one.
    opens = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(text).removeprefix(tokenizer.bos_token if opens else "")
