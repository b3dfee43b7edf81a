"""Continuing a prompt, behind retrieved passages."""

from typing import TYPE_CHECKING, Any

from hullft_ops._checks import check_integer, check_text
from hullft_ops.ttft.errors import first_line
from hullft_ops.ttft.ngrams import NgramProcessor, Ngrams
from hullft_ops.ttft.reader import Context, Reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# transformers' default. It is named here because the prompt must leave room for it.
NEW_TOKENS = 20


def continue_prompt(
    reader: Reader,
    prompt: str,
    *,
    context: Context | None = None,
    ngrams: Ngrams | None = None,
    **generate_kwargs: Any,
) -> str:
    """What the model writes after ``prompt``, without special tokens.

    Args:
        reader: the model, which generates in eval mode.
        prompt: a text. Of one that is too long, the model reads the last tokens.
        context: retrieved passages before the prompt. The farthest go until the rest fits.
        ngrams: n-grams to mix in; None for none.
        generate_kwargs: for ``model.generate``; ``max_new_tokens`` defaults to 20.

    Raises:
        TypeError, ValueError: the prompt is not a str or has no token, ``max_new_tokens`` leaves
            no room for it, or an argument asks for more than one continuation.
        RuntimeError: the model is in use elsewhere.
    """
    check_text("generate", "prompt", prompt)
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
    tokens = reader.tokens(prompt)
    if not tokens.ids:
        raise ValueError(f"generate: prompt must have a token, got {prompt[:20]!r}")
    context = context or Context()
    room = reader.window - new_tokens
    head = context.before(tokens.ids, tokens.opening, room)
    body = tokens.ids[tokens.opening :] if head else tokens.ids
    ids = [*head, *body[-(room - len(head)) :]]
    if ngrams is not None:
        processors = generate_kwargs.get("logits_processor") or []
        mixture = NgramProcessor(ngrams, start=len(head))
        generate_kwargs["logits_processor"] = [*processors, mixture]
    return reader.generate(ids, context, **generate_kwargs)


def chat_prompt(tokenizer: "PreTrainedTokenizerBase", message: str) -> str:
    """A user's message in the tokenizer's chat template, up to where the answer begins.

    ValueError if the tokenizer has no template, or its template fails.
    """
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
