"""Conversations, as the tokenizer's chat template lays them out."""

from typing import TYPE_CHECKING, Any

from hullft_ops._checks import check_text
from hullft_ops.ttft.errors import first_line
from hullft_ops.ttft.question import Question
from hullft_ops.ttft.reader import Reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Messages with a "role" and a "content", as chat templates take them.
Conversation = list[dict[str, Any]]
Prompt = str | Conversation
# Stands in the template where the user's last message begins, and is cut out again.
_MARK = "HullftPassagesStandHere"


def prompt_question(
    reader: Reader, prompt: Prompt, *, chat: bool = False, has_passages: bool = False
) -> Question:
    """A prompt as the model reads it.

    Args:
        reader: the model.
        prompt: a text, or a conversation, of which passages stand before the last message of the
            user.
        chat: whether a text is a user's message.
        has_passages: whether there are any.

    Raises:
        TypeError, ValueError: the prompt is neither, or has no token; or as `chat_prompt`.
    """
    text = question_of(prompt)
    if isinstance(prompt, list) or chat:
        messages, question = conversation(prompt)
        prompt = chat_prompt(reader.tokenizer, messages)
        if has_passages:
            question["content"] = f"{_MARK}{question['content']}"
            begin, _, end = chat_prompt(reader.tokenizer, messages).partition(_MARK)
            # A template may write the message twice, or otherwise than it is.
            if end and _MARK not in end:
                opening, body = reader.tokens(begin).ids, reader.passage_ids(end)
                ids = [*opening, *body]
                return Question(text, ids, len(opening), start=0, cursor=len(ids))
    tokens = reader.tokens(prompt)
    if not tokens.ids:
        raise ValueError(f"generate: prompt must have a token, got {prompt[:20]!r}")
    return Question(text, tokens.ids, tokens.opening, start=0, cursor=len(tokens.ids))


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


def question_of(prompt: Prompt) -> str:
    """What to retrieve for: a text, or the last message of the user."""
    return str(conversation(prompt)[1]["content"])


def chat_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Conversation) -> str:
    """A conversation in the tokenizer's chat template, up to where the answer begins.

    ValueError if the tokenizer has no template, or its template fails.
    """
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
