"""Continuing prompts behind retrieved passages: from a boundary of tokens, with drafts."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from hullft_ops._checks import check_integer
from hullft_ops.ttft.chat import Prompt, prompt_question
from hullft_ops.ttft.drafts import DraftedWriting
from hullft_ops.ttft.healing import HealedStreamer, Healing
from hullft_ops.ttft.models.cache import copied
from hullft_ops.ttft.models.hidden import HiddenStates, seen_hidden_states
from hullft_ops.ttft.models.precision import casting_once
from hullft_ops.ttft.question import Question, Row
from hullft_ops.ttft.reader import (
    TOKENS_AT_ONCE,
    Draft,
    Mixture,
    Prediction,
    Prefix,
    Reader,
    mixed_logits,
)

_log = logging.getLogger(__name__)
# transformers' default. It is named here because the prompt must leave room for it.
NEW_TOKENS = 20
# Modes of transformers in which drafts give the same text, and others that go on behind a cache.
_PLAIN_MODES = ("greedy_search", "sample")
_BEAM_MODES = ("beam_search", "beam_sample")


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
    question = prompt_question(
        reader, prompt, chat=chat, has_passages=bool(prefix.passages)
    )
    head = prefix.before(question.ids, question.opening, room)
    if head:
        question = question.behind_opening()
    room -= len(head)
    if len(question.ids) > room:
        warnings.warn(
            f"the prompt has {len(question.ids)} tokens: the model reads the last {room}",
            stacklevel=2,
        )
    return Row(head, question.fitted(room))


def written(
    reader: Reader,
    rows: Sequence[Row],
    prefixes: Sequence[Prefix],
    *,
    max_new_tokens: int,
    token_healing: bool = True,
    **options: Any,
) -> list[str]:
    """What the model writes behind each prompt, in one batch, without special tokens.

    Args:
        reader: the model.
        rows: each has at most ``window - max_new_tokens`` tokens.
        prefixes: what was prepared for each.
        max_new_tokens: how many tokens to write at most.
        token_healing: whether to write the last tokens of each prompt again; see `healing`.
        options: others of ``model.generate``.
    """
    taken = [_taken_back(reader, row) if token_healing else [] for row in rows]
    cut = [row.without_end(len(end)) for row, end in zip(rows, taken, strict=True)]
    healing = Healing(
        reader.vocabulary,
        held=[reader.vocabulary.content(end) for end in taken],
        length=max(len(row.ids) for row in cut),
        new_tokens=max_new_tokens,
        stops=_stops(reader, options),
    )
    mixture = MixtureProcessor(
        [[each.while_writing() for each in prefix.mixtures] for prefix in prefixes],
        [row.question for row in cut],
        healing.length,
    )
    if options.get("streamer") is not None:
        options["streamer"] = HealedStreamer(
            options["streamer"], rows[0].ids, healing, reader.tokenizer
        )
    _extend(options, reader, healing, mixture, max(map(len, taken)))
    output = _generated(reader, cut, prefixes, taken, mixture, options)
    texts = healing.texts(output)
    return [
        _behind(reader, row.ids, before.ids + new)
        for row, before, new in zip(rows, cut, texts, strict=True)
    ]


def _taken_back(reader: Reader, row: Row) -> list[int]:
    # A token stays to be continued: one of a passage, or the prompt's first.
    before = [*row.head[-1:], *row.question.before_cursor.tolist()]
    return before[len(before) - reader.vocabulary.taken_back(before) :]


def _stops(reader: Reader, options: dict[str, Any]) -> list[bytes]:
    """The texts to stop at. transformers would find them across the end of the prompt, too."""
    if not reader.vocabulary:
        options.setdefault("tokenizer", reader.tokenizer)
        return []
    stops = options.pop("stop_strings", None) or []
    stops = [stops] if isinstance(stops, str) else stops
    return [stop.encode() for stop in stops if stop]


def _extend(
    options: dict[str, Any],
    reader: Reader,
    healing: Healing,
    mixture: "MixtureProcessor",
    taken: int,
) -> None:
    """Add the mixture and what is held to the options, behind up to ``taken`` tokens less."""
    # What is held comes last, so that the mixture is that of a text without it.
    processors = options.get("logits_processor") or []
    options["logits_processor"] = [*processors, mixture, healing]
    criteria = options.get("stopping_criteria") or []
    options["stopping_criteria"] = [*criteria, healing.is_done]
    # What was taken back may be written byte by byte.
    longest = healing.new_tokens + max(map(len, healing.held))
    options["max_new_tokens"] = min(longest, reader.window - healing.length)
    if options.get("min_new_tokens"):
        options["min_new_tokens"] += taken
    if reader.tokenizer.pad_token_id is None:
        options.setdefault("pad_token_id", reader.tokenizer.eos_token_id)


def _behind(reader: Reader, prompt: list[int], ids: list[int]) -> str:
    """The text of ``ids`` behind a prompt's."""
    # Decoders of SentencePiece take the space from the beginning of what they decode.
    before, text = reader.tokenizer.batch_decode(
        [prompt, ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text[len(before) :]


def _generated(
    reader: Reader,
    rows: Sequence[Row],
    prefixes: Sequence[Prefix],
    taken: Sequence[list[int]],
    mixture: "MixtureProcessor",
    options: dict[str, Any],
) -> Any:
    """What ``model.generate`` returns, behind padded rows."""
    ids, mask = _padded([row.ids for row in rows], reader.model.device)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    config = _config(reader, options)
    is_alone = len(rows) == 1
    generate: Any = reader.model.generate
    with (
        reader.reading(),
        casting_once(reader.model),
        seen_hidden_states(
            reader.model, is_needed=_shows_hidden(config, options, prefixes)
        ) as mixture.states,
    ):
        cache = prefixes[0].cache_before(rows[0].ids) if is_alone else None
        if not _reads_again(config, options, prefixes) and (
            cache is not None or reader.keeps_cache
        ):
            is_plain = config.get_generation_mode() in _PLAIN_MODES
            unread = 1
            if is_alone and is_plain and not config.stop_strings:
                # One pass reads the rest and verifies the first draft.
                unread = TOKENS_AT_ONCE
                streamer = options.pop("streamer", None)
                options["custom_generate"] = DraftedWriting(
                    reader.keyword, taken[0], mixture.draft, mixture.states, streamer
                )
            cache = reader.read(ids[:, :-unread], mask[:, :-unread], cache)
            if cache is not None:
                cache.batch_repeat_interleave(config.num_beams or 1)
                arguments |= {reader.keyword: copied(cache), "use_cache": True}
        return generate(**arguments, **options)


def _shows_hidden(
    config: Any, options: Mapping[str, Any], prefixes: Sequence[Prefix]
) -> bool:
    """Whether a mixture may want hidden states, and each pass predicts one token for each row."""
    mode = config.get_generation_mode(options.get("assistant_model"))
    is_guided = config.guidance_scale not in (None, 1)
    has_mixtures = any(prefix.mixtures for prefix in prefixes)
    return has_mixtures and not is_guided and mode in (*_PLAIN_MODES, *_BEAM_MODES)


def _padded(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of tokens, padded at their beginning, and their attention mask, both ``[B, T]``."""
    length = max(map(len, rows))
    # Masked, so any token would do. With a row's own, a penalty of repetition stays the same.
    padded = [[row[0]] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def _config(reader: Reader, options: Mapping[str, Any]) -> Any:
    """The configuration that ``model.generate`` will use."""
    config: Any = deepcopy(reader.model.generation_config)
    other = options.get("generation_config")
    if other is not None:
        config.update(**other.to_diff_dict())
    config.update(**options)
    return config


def _reads_again(
    config: Any, options: Mapping[str, Any], prefixes: Sequence[Prefix]
) -> bool:
    """Whether transformers makes a cache of its own, so that the model reads all tokens again."""
    reasons = []
    # Gemma's configurations say hybrid, which transformers ignores.
    if config.cache_implementation not in (None, "hybrid"):
        reasons.append(f"cache_implementation={config.cache_implementation!r}")
    if config.use_cache is False:
        reasons.append("use_cache=False")
    mode = config.get_generation_mode(options.get("assistant_model"))
    if mode not in (*_PLAIN_MODES, *_BEAM_MODES):
        reasons.append(str(mode.value))
    if reasons and any(prefix.cache is not None for prefix in prefixes):
        _log.warning(
            "generate: the model reads the passages again because of %s",
            " and ".join(reasons),
        )
    return bool(reasons)


class MixtureProcessor:
    """A logits processor for ``model.generate``.

    Args:
        mixtures: of each prompt of the batch.
        questions: the prompts.
        length: how many tokens the model reads before it writes.
    """

    def __init__(
        self,
        mixtures: Sequence[Sequence[Mixture]],
        questions: Sequence[Question],
        length: int,
    ) -> None:
        self._mixtures = mixtures
        self._questions = questions
        self._length = length
        self.states = HiddenStates()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores of the next token, a row for each text; a prompt's beams are consecutive."""
        beams = len(scores) // len(self._mixtures)
        hidden = self.states.taken()
        rows = []
        for number, (written, logits) in enumerate(
            zip(input_ids[:, self._length :], scores, strict=True)
        ):
            prompt = number // beams
            state = None if hidden is None else hidden[number]
            rows.append(
                mixed_logits(
                    self._mixtures[prompt],
                    self._questions[prompt],
                    written,
                    Prediction(logits, state),
                )
            )
        return torch.stack(rows)

    def draft(self, ids: Tensor, length: int) -> Draft:
        """What may come next in a batch of one row ``[T]``; see `Mixture.draft`."""
        [question], [mixtures] = self._questions, self._mixtures
        written = ids[self._length :]
        drafts = (mixture.draft(question, written, length) for mixture in mixtures)
        return next((draft for draft in drafts if draft.tokens), Draft())
