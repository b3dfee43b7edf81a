"""Writing at a question's cursor: a request, what is held, a loop, a text."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hullft_ops._checks import check_integer, check_text
from hullft_ops.ttft.drafts import DraftedWriting
from hullft_ops.ttft.endings import STOPS, Ending
from hullft_ops.ttft.healing import HealedStreamer, Healing, Limits
from hullft_ops.ttft.language_model import TOKENS_AT_ONCE, LanguageModel
from hullft_ops.ttft.models.cache import copied
from hullft_ops.ttft.models.hidden import HiddenStates, seen_hidden_states
from hullft_ops.ttft.models.precision import casting_once
from hullft_ops.ttft.prefix import (
    Draft,
    Mixture,
    Prediction,
    Prefix,
    TokenRow,
    mixed_logits,
)
from hullft_ops.ttft.question import Question

# Of what ``generate`` takes. The number of tokens is transformers' default.
_DEFAULTS = {"max_new_tokens": 20, "token_healing": True, "stop_at": None}
_FIXED = {
    "num_return_sequences": (1, "only one continuation is returned"),
    "return_dict_in_generate": (False, "only one continuation is returned"),
    "max_length": (None, "max_new_tokens counts behind the prompt"),
    "custom_generate": (None, "the loop is this package's"),
    "forced_eos_token_id": (None, "a text may end with any token"),
}
# So many of the last tokens before the cursor are looked at for the beginning of its line.
_LINE_TOKENS = 128
# Modes of transformers in which drafts give the same text, and others that go on after a cache.
_PLAIN_MODES = ("greedy_search", "sample")
_BEAM_MODES = ("beam_search", "beam_sample")


@dataclass(frozen=True)
class Request:
    """What ``generate`` is asked for.

    Attributes:
        limits: where a text ends.
        heals: whether the end of a prompt is written again; see `healing`.
        streamer: gets the prompt and what is written; None for none.
        config: the other options that transformers configures.
        arguments: for ``model.generate``.
    """

    limits: Limits
    heals: bool
    streamer: Any
    config: Any
    arguments: Mapping[str, Any]


def request_of(language_model: LanguageModel, options: Mapping[str, Any]) -> Request:
    """Understand the options of ``generate``, in its ``generation_config`` and beside it."""
    given = options.get("generation_config")
    given = {} if given is None else vars(given)
    asked = {name: value for name, value in given.items() if value is not None}
    asked = _DEFAULTS | asked | dict(options)
    asked.pop("generation_config", None)
    for name, (value, reason) in _FIXED.items():
        if asked.pop(name, value) != value:
            raise ValueError(f"generate: {name} must be {value}: {reason}")
    new_tokens = asked.pop("max_new_tokens")
    check_integer(
        "generate", "max_new_tokens", new_tokens, 1, language_model.window - 1
    )
    stops = asked.pop("stop_strings", None) or []
    stops = [stops] if isinstance(stops, str) else stops
    for stop in stops:
        check_text("generate", "stop_strings", stop)
    stop_at = asked.pop("stop_at")
    if stop_at not in (None, *STOPS):
        raise ValueError(
            f"generate: stop_at must be one of {', '.join(STOPS)} or None, got {stop_at!r}"
        )
    least, streamer = asked.pop("min_new_tokens", None), asked.pop("streamer", None)
    heals = asked.pop("token_healing")
    config: Any = deepcopy(language_model.model.generation_config)
    arguments = {"tokenizer": language_model.tokenizer} | config.update(**asked)
    if not language_model.vocabulary:
        # Without the bytes of tokens, transformers looks for them.
        config.stop_strings, stops = stops or None, []
    last = config.eos_token_id
    last = [] if last is None else torch.tensor(last).flatten().tolist()
    config.eos_token_id = [*last, *language_model.vocabulary.marks] or None
    # It fills rows that have ended, and must not become text.
    if language_model.tokenizer.eos_token_id is not None:
        config.pad_token_id = language_model.tokenizer.eos_token_id
    stops = [stop.encode() for stop in stops if stop]
    last = config.eos_token_id or []
    limits = Limits(new_tokens, least or 0, last, stops, stop_at)
    return Request(limits, heals, streamer, config, arguments)


def continue_questions(
    language_model: LanguageModel,
    questions: Sequence[Question],
    prefixes: Sequence[Prefix],
    **generate_kwargs: Any,
) -> list[str]:
    """What the model writes at each cursor, in one batch, without special tokens.

    Args:
        language_model: the model, which generates in eval mode.
        questions: of one that is too long, the model reads what is near the cursor.
        prefixes: what was prepared for each. The farthest passages go until the rest fits.
        generate_kwargs: for ``model.generate``; ``max_new_tokens`` defaults to 20, and
            ``token_healing`` to True: the end of a prompt is written again from a boundary of
            tokens, held to its characters. ``stop_at`` ends a text with its first "line", with the
            "block" of lines indented like that or further, or with the "expression", where a line
            closes the brackets that it opened.

    Raises:
        TypeError, ValueError: ``max_new_tokens`` leaves no room for a question, or an argument asks
            for more than one continuation.
        RuntimeError: the model is in use elsewhere.
    """
    request = request_of(language_model, generate_kwargs)
    if request.streamer is not None and len(questions) > 1:
        raise ValueError(
            f"generate: streamer must be None for several prompts, got {len(questions)}"
        )
    room = language_model.window - request.limits.longest
    rows = [
        prefix.row(question, room)
        for question, prefix in zip(questions, prefixes, strict=True)
    ]
    return generate_rows(language_model, rows, prefixes, request)


def generate_rows(
    language_model: LanguageModel,
    rows: Sequence[TokenRow],
    prefixes: Sequence[Prefix],
    request: Request,
) -> list[str]:
    """What the model writes at each cursor, in one batch, without special tokens.

    Args:
        language_model: the model.
        rows: each has room for the request's tokens in the window.
        prefixes: what was prepared for each.
        request: how to write.
    """
    ends = [_end_to_heal(language_model, row) if request.heals else [] for row in rows]
    cut = [row.without_end(len(end)) for row, end in zip(rows, ends, strict=True)]
    healing = Healing(
        language_model.vocabulary,
        held=[language_model.vocabulary.content(end) for end in ends],
        endings=[_ending(language_model, row, request) for row in rows],
        length=max(len(row.ids) for row in cut),
        limits=request.limits,
    )
    if request.streamer is not None:
        prompt = rows[0].before_cursor
        streamer = HealedStreamer(request.streamer, prompt, healing)
        request = replace(request, streamer=streamer)
    output = _written(language_model, cut, prefixes, ends[0], healing, request)
    texts = [
        _text_behind(language_model, row.before_cursor, [*before.before_cursor, *new])
        for row, before, new in zip(rows, cut, healing.texts(output), strict=True)
    ]
    return [t[: e.place(t)] for t, e in zip(texts, healing.endings, strict=True)]


def _ending(language_model: LanguageModel, row: TokenRow, request: Request) -> Ending:
    before = language_model.tokenizer.decode(row.question.before_cursor[-_LINE_TOKENS:])
    line = str(before).rpartition("\n")[2]
    return Ending(request.limits.stop_at, line, row.question.suffix)


def _end_to_heal(language_model: LanguageModel, row: TokenRow) -> list[int]:
    """The last tokens before the cursor, which are written again."""
    # A token stays to be continued: one of a passage, a mark, or the prompt's first.
    start = max(1, len(row.head) + row.question.start)
    before = row.before_cursor
    count = language_model.vocabulary.taken_back(before[start - 1 :])
    return before[len(before) - count :]


def _text_behind(
    language_model: LanguageModel, prompt: list[int], ids: list[int]
) -> str:
    """The text of ``ids`` after a prompt's."""
    # Decoders of SentencePiece take the space from the beginning of what they decode.
    before, text = language_model.tokenizer.batch_decode(
        [prompt, ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text[len(before) :]


def _written(
    language_model: LanguageModel,
    rows: Sequence[TokenRow],
    prefixes: Sequence[Prefix],
    end: Sequence[int],
    healing: Healing,
    request: Request,
) -> Tensor:
    """Padded rows with what the model has written; ``end`` was cut from the first."""
    model: Any = language_model.model
    ids, mask = _padded([row.ids for row in rows], model.device)
    arguments, config = dict(request.arguments), deepcopy(request.config)
    config.max_new_tokens = min(healing.longest, language_model.window - healing.length)
    mixtures = [[m.while_writing() for m in prefix.mixtures] for prefix in prefixes]
    mode = config.get_generation_mode(arguments.get("assistant_model"))
    is_guided = config.guidance_scale not in (None, 1)
    makes_one_pass = mode in (*_PLAIN_MODES, *_BEAM_MODES) and not is_guided
    # Gemma's configurations say hybrid, which transformers ignores.
    is_our_cache = config.cache_implementation in (None, "hybrid")
    goes_on = makes_one_pass and is_our_cache and config.use_cache is not False
    sees = makes_one_pass and any(mixtures)
    with (
        language_model.reading(),
        casting_once(model),
        seen_hidden_states(model, is_needed=sees) as states,
    ):
        mixing = Mixing([row.question for row in rows], mixtures, ids.shape[1], states)
        # Healing comes last, so the mixture is the same as for a text without it.
        processors = arguments.get("logits_processor") or []
        arguments["logits_processor"] = [*processors, mixing, healing]
        criteria = arguments.get("stopping_criteria") or []
        arguments["stopping_criteria"] = [*criteria, healing.is_done]
        cache = prefixes[0].cache_before(rows[0].ids) if len(rows) == 1 else None
        goes_on = goes_on and (cache is not None or language_model.keeps_cache)
        unread = 1
        if (
            goes_on
            and len(rows) == 1
            and mode in _PLAIN_MODES
            and not config.stop_strings
        ):
            # One pass reads the rest and verifies the first draft.
            unread = TOKENS_AT_ONCE
            arguments["custom_generate"] = DraftedWriting(
                language_model.cache_argument,
                end,
                mixing.draft,
                states,
                request.streamer,
            )
        else:
            arguments["streamer"] = request.streamer
        if goes_on:
            cache = language_model.read(ids[:, :-unread], mask[:, :-unread], cache)
        if goes_on and cache is not None:
            cache.batch_repeat_interleave(config.num_beams or 1)
            arguments[language_model.cache_argument] = copied(cache)
        arguments |= {"attention_mask": mask, "generation_config": config}
        output: Tensor = model.generate(ids, **arguments)
    return output


def _padded(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of tokens, padded at their beginning, and their attention mask, both ``[B, T]``."""
    length = max(map(len, rows))
    # Masked, so any token would do. With a row's own, a penalty of repetition stays the same.
    padded = [[row[0]] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


@dataclass(frozen=True)
class Mixing:
    """A logits processor for ``model.generate``.

    Attributes:
        questions: the prompts of the batch.
        mixtures: of each prompt.
        length: how many tokens the model reads before it writes.
        states: sees the hidden states of the passes.
    """

    questions: Sequence[Question]
    mixtures: Sequence[Sequence[Mixture]]
    length: int
    states: HiddenStates

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores of the next token, a row for each text; a prompt's beams are consecutive."""
        beams = len(scores) // len(self.questions)
        hidden = self.states.pop()
        rows = []
        for number, (ids, logits) in enumerate(zip(input_ids, scores, strict=True)):
            prediction = Prediction(
                logits, None if hidden is None else hidden[number, -1]
            )
            question = self.questions[number // beams]
            mixtures = self.mixtures[number // beams]
            written = ids[self.length :]
            rows.append(mixed_logits(mixtures, question, written, prediction))
        return torch.stack(rows)

    def draft(self, ids: Tensor, length: int) -> Draft:
        """What may come next in a batch of one row ``[T]``; see `Mixture.draft`."""
        [question], [mixtures] = self.questions, self.mixtures
        written = ids[self.length :]
        drafts = (mixture.draft(question, written, length) for mixture in mixtures)
        return next((draft for draft in drafts if draft.tokens), Draft())
