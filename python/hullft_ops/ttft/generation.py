"""Continuing prompts, behind retrieved passages."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hullft_ops._checks import check_integer
from hullft_ops.ttft.chat import Prompt, prompt_tokens
from hullft_ops.ttft.prefix import MixedText, Mixture, Prefix
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
        _row(reader, prompt, prefix, room, chat=chat)
        for prompt, prefix in zip(prompts, prefixes, strict=True)
    ]
    mixtures = [[each.while_writing() for each in p.mixtures] for p in prefixes]
    if any(mixtures):
        processors = generate_kwargs.get("logits_processor") or []
        processor = _MixtureProcessor(mixtures, [len(body) for _, body in rows])
        generate_kwargs["logits_processor"] = [*processors, processor]
    ids = [[*head, *body] for head, body in rows]
    return reader.generate(ids, prefixes, **generate_kwargs)


def _row(
    reader: Reader, prompt: Prompt, prefix: Prefix, room: int, *, chat: bool
) -> tuple[list[int], list[int]]:
    """The tokens that the model continues, at most ``room``: of passages, and of the prompt."""
    tokens = prompt_tokens(
        reader, prompt, chat=chat, has_passages=bool(prefix.passages)
    )
    head = prefix.before(tokens.ids, tokens.opening, room)
    body = tokens.ids[tokens.opening :] if head else tokens.ids
    return head, body[-(room - len(head)) :]


class _MixtureProcessor:
    """A logits processor for ``model.generate``.

    Args:
        mixtures: of each prompt of the batch.
        lengths: how many tokens at the end of what the model reads are the prompt's.
    """

    def __init__(
        self, mixtures: Sequence[Sequence[Mixture]], lengths: Sequence[int]
    ) -> None:
        self._mixtures = mixtures
        self._lengths = lengths
        self._texts: dict[tuple[int, int], MixedText] = {}
        self._read: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores of the next token, a row for each text; a prompt's beams are consecutive."""
        if self._read is None:
            self._read = input_ids.shape[1]
        beams = len(scores) // len(self._mixtures)
        rows = []
        for row, ids in enumerate(input_ids.tolist()):
            logits = scores[row]
            start = self._read - self._lengths[row // beams]
            for number, mixture in enumerate(self._mixtures[row // beams]):
                text = self._text((row, number), mixture, ids[start:])
                logits = text.mixed(logits)
            rows.append(logits)
        return torch.stack(rows)

    def _text(
        self, place: tuple[int, int], mixture: Mixture, tokens: list[int]
    ) -> MixedText:
        """The text of a row, which goes on where it was unless a beam has taken its place."""
        text = self._texts.get(place)
        if text is None or list(text.tokens) != tokens[: len(text.tokens)]:
            text = self._texts[place] = mixture.after([])
        text.extend(tokens[len(text.tokens) :])
        return text
