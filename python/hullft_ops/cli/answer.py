"""``hullft-ops answer``: continue many prompts, and write each answer to a file."""

import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from hullft_ops._checks import check_integer, check_text
from hullft_ops.cli.adapt import loaded_finetuner, text_in
from hullft_ops.cli.options import fields_of
from hullft_ops.ttft.chat import conversation
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.endings import StopAt
from hullft_ops.ttft.files import check_output
from hullft_ops.ttft.models.loading import ModelConfig
from hullft_ops.ttft.question import Prompt, question_of
from hullft_ops.ttft.records import open_records, read_records, run_identity
from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.terminal import counted, echo, ticking
from hullft_ops.ttft.training import Deadline
from hullft_ops.ttft.validation import InputError, parse

# A line of JSONL: an object with a column of prompts, or a conversation's messages.
_Record: Any = dict[str, Any] | list[dict[str, Any]]


class Answer(BaseModel):
    """A prompt, a text or a conversation, with what the model wrote at its end, or before the
    suffix."""

    model_config = ConfigDict(frozen=True, strict=True)

    run: str
    prompt: str | list[dict[str, Any]]
    suffix: str = ""
    answer: str

    @property
    def key(self) -> tuple[str, str]:
        return json.dumps(self.prompt), self.suffix


def answer(
    prompts: tyro.conf.Positional[str],
    model: Annotated[dict[str, Any], fields_of(ModelConfig)],
    settings: Annotated[dict[str, Any], fields_of(TTFTConfig)],
    *,
    output: Path,
    store: Path | None = None,
    embedder: str = DEFAULT_EMBEDDER,
    prompt_column: str = "prompt",
    suffix_column: str = "suffix",
    chat: bool = False,
    seconds: float | None = None,
    max_new_tokens: int = 64,
    stop_at: StopAt | None = None,
    batch_size: int = 8,
) -> None:
    """Continue many prompts; write a line of JSON for each, with the prompt and its answer.

    Model, embedder and adapter are loaded once. The model adapts to one prompt after the other;
    without steps it continues prompts of similar length together. A killed run resumes: prompts
    that have an answer in the output are skipped.

    Args:
        prompts: JSONL file; - for stdin. A line is an object, or a list of messages. A prompt that
            repeats is answered once.
        model: the language model.
        settings: how to adapt.
        output: answers file, JSONL.
        store: folder of a datastore, which hullft-ops index makes; None with --n-select 0,
            --context 0 and --ngrams 0.
        embedder: name or folder of the sentence-transformers model that made the datastore.
        prompt_column: the column of the file with the prompt, a text or a list of messages;
            where it is missing, messages.
        suffix_column: the column with the text after the cursor, if there is one.
        chat: continue texts as messages, in the chat template of an instruct model.
        seconds: budget for retrieval and training for each prompt.
        max_new_tokens: length of an answer.
        stop_at: where it ends before that, as for hullft-ops adapt.
        batch_size: prompts to continue together.
    """
    check_integer("generate", "batch_size", batch_size, 1)
    Deadline(seconds)  # Refuses a wrong budget before the work.
    model_config = ModelConfig(**model)
    config = TTFTConfig(**settings)
    sources = prompts, store, model_config.model, config.adapter, embedder
    check_output(output, kind="rows", inputs=sources)
    if output.exists():
        # A file of another kind is refused before the work.
        read_records(output, Answer)
    every = prompts_in(prompts, prompt_column, suffix_column)
    finetuner = loaded_finetuner(model_config, config, embedder, store=store)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stop_at": stop_at,
        "seconds": seconds,
    }
    settings_of_run = [config.settings(), options | {"chat": chat}]
    run = run_identity(finetuner.language_model, finetuner.store, settings_of_run)
    with open_records(output, run, Answer) as answers:
        left = [each for key, each in every.items() if key not in answers.rows]
        questions = [
            question_of(
                finetuner.tokenizer,
                prompt,
                suffix=suffix,
                chat=chat,
            )
            for prompt, suffix in left
        ]
        done = len(every) - len(left)
        echo(f"{counted(len(every), 'prompt')}, {done} answered before", err=True)
        texts = finetuner.generate_each(
            questions,
            batch_size=batch_size,
            do_sample=False,
            **options,
        )
        bar = ticking(tqdm(texts, "answers", len(every), initial=done))
        for position, text in bar:
            prompt, suffix = left[position]
            row = Answer(run=run, prompt=prompt, suffix=suffix, answer=text)
            answers.append(row)
    echo(output)


def prompts_in(
    source: str, column: str, suffix_column: str = "suffix"
) -> dict[tuple[str, str], tuple[Prompt, str]]:
    """The prompts of a JSONL file in order, with their suffixes, by the keys of their answers.

    InputError names a wrong line.
    """
    prompts = {}
    for number, line in enumerate(text_in(source).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"prompts {source}: line {number}"
        prompt: Any = parse(_Record, line.encode(), place)
        suffix = ""
        if isinstance(prompt, dict):
            suffix = prompt.get(suffix_column) or ""
            prompt = prompt.get(column, prompt.get("messages"))
        try:
            check_text("answer", suffix_column, suffix)
            text = conversation(prompt)[1]["content"] + suffix
            check_text("answer", column, text)
            if not text.strip():
                raise ValueError(f"answer: prompt must have text, got {text[:20]!r}")
            key = json.dumps(prompt)
        except (TypeError, ValueError) as error:
            raise InputError(f"{place}, --prompt-column {column}: {error}") from error
        prompts[key, suffix] = prompt, suffix
    if not prompts:
        raise InputError(f"prompts {source}: there is none")
    return prompts
