"""``hullft-ops answer``: continue many prompts, and write each answer to a file."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from reprlib import repr as shortened
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from hullft_ops._checks import check_integer
from hullft_ops._terminal import counted, echo
from hullft_ops.cli.inputs import load_passages, text_in
from hullft_ops.cli.options import fields_of
from hullft_ops.ttft.adapter import adapter_identity
from hullft_ops.ttft.config import ModelConfig, TTFTConfig, default_lr
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER, Embedder
from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.files import check_output
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.generation import Prompt, chat_prompt, question_of
from hullft_ops.ttft.models.checks import full_window
from hullft_ops.ttft.reader import tokenizer_identity
from hullft_ops.ttft.records import Record, open_records, read_records
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.store.corpus import FilePatterns
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.support import check_prompt
from hullft_ops.ttft.validation import parse


class Answer(Record):
    """A prompt with what the model wrote after it."""

    decided_by = "model, tokenizer, datastore, embedder, adapter or option"

    prompt: str | list[dict[str, Any]]
    """A text or a conversation."""
    answer: str
    """The continuation, without special tokens."""

    @property
    def key(self) -> tuple[str, ...]:
        return (key_of(self.prompt),)

    @property
    def title(self) -> str:
        return shortened(self.prompt)


def answer(
    prompts: tyro.conf.Positional[str],
    inputs: Annotated[dict[str, Any], fields_of(ModelConfig)],
    settings: Annotated[
        dict[str, Any],
        fields_of(TTFTConfig, lr="2e-4 for the shipped model, 5e-5"),
    ],
    files: Annotated[dict[str, Any], fields_of(FilePatterns)],
    *,
    output: Path,
    embedder: str = DEFAULT_EMBEDDER,
    store: Path | None = None,
    corpus: str | None = None,
    prompt_column: str = "prompt",
    chat: bool = False,
    seconds: float | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
) -> None:
    """Continue many prompts; write a line of JSON with each prompt and its answer.

    Model, embedder and adapter are loaded once. With --n-select 0 prompts of similar length are
    continued together; else the model adapts to one after the other. A killed run goes on: prompts
    that the output has are not answered again.

    Args:
        prompts: JSONL file, or text with a prompt on each line; - for stdin. A prompt that repeats
            is answered once.
        inputs: the language model.
        settings: how to adapt.
        files: what is read of the folder at --corpus.
        output: answers file, JSONL.
        embedder: name or folder of a sentence-transformers model.
        store: folder of a datastore, which hullft-ops index makes; or give --corpus. Neither is
            needed with --n-select 0 --context 0.
        corpus: a folder of texts, or what else hullft-ops index reads; see hullft-ops adapt.
        prompt_column: the column of a JSONL file that holds the prompt, a text or a list of
            messages. Where it is missing, messages is read.
        chat: continue texts as messages, in the chat template of an instruct model.
        seconds: budget for retrieval and training for each prompt.
        max_new_tokens: length of an answer.
        batch_size: prompts to continue at once with --n-select 0.
    """
    language_model = ModelConfig(**inputs)
    values = {"lr": default_lr(language_model.model)} | settings
    config = TTFTConfig(**values)
    retrieves = config.n_select > 0 or config.context > 0
    if retrieves and (store is None) == (corpus is None):
        raise ValueError(
            "give one of --store and --corpus, or --n-select 0 --context 0"
        )
    check_integer("answer", "--batch-size", batch_size, 1)
    sources = prompts, store, corpus, language_model.model, config.adapter, embedder
    check_output(output, kind="rows", inputs=sources)
    if output.exists():
        # A file of another kind is refused before the work.
        read_records(output, Answer)
    every = read_prompts(prompts, prompt_column)
    passages = Datastore.open(store) if store is not None else None
    echo("loading the model", err=True)
    model, tokenizer = language_model.load()
    window = full_window(model, tokenizer, config.max_length)
    check_integer("answer", "--max-new-tokens", max_new_tokens, 1, window - 1)
    for prompt in every:
        if chat or not isinstance(prompt, str):
            chat_prompt(tokenizer, prompt)
    encoder: Embedder | None = None
    if retrieves:
        passages, encoder = load_passages(passages, corpus, embedder, files)
    finetuner = TestTimeFinetuner(model, tokenizer, passages, encoder, config)
    options: dict[str, Any] = {
        "chat": chat,
        "seconds": seconds,
        "max_new_tokens": max_new_tokens,
    }
    run = run_identity(finetuner, passages, options)
    with open_records(output, run, Answer) as answers:
        left = [prompt for prompt in every if (key_of(prompt),) not in answers.rows]
        done = len(every) - len(left)
        echo(f"{counted(len(every), 'prompt')}, {done} answered before", err=True)
        texts = finetuner.generate_each(
            left, batch_size=batch_size, do_sample=False, **options
        )
        for position, text in tqdm(
            texts, total=len(every), initial=done, unit="prompt"
        ):
            answers.append(Answer(run=run, prompt=left[position], answer=text))
    echo(output)


def read_prompts(source: str, column: str) -> list[Prompt]:
    """The prompts of a JSONL file or a text in order, each once. InputError names a wrong line."""
    prompts: dict[str, Prompt] = {}
    for place, prompt in _lines_of(source, column):
        try:
            check_prompt(question_of(prompt))
        except (TypeError, ValueError) as error:
            raise InputError(f"{place}: {error}") from error
        prompts.setdefault(key_of(prompt), prompt)
    if not prompts:
        raise InputError(f"prompts {source}: there is none")
    return list(prompts.values())


def _lines_of(source: str, column: str) -> Iterator[tuple[str, Any]]:
    """Each prompt, as it stands there, with its place."""
    text = text_in(source)
    is_json = text.lstrip().startswith("{") or Path(source).suffix.startswith(".json")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"prompts {source}: line {number}"
        if not is_json:
            yield place, line.removesuffix("\r")
            continue
        record = parse(dict[str, Any], line.encode(), place)
        name = column if column in record else "messages"
        if name not in record:
            raise InputError(
                f"{place}: has no column {column}: --prompt-column names another of "
                f"{', '.join(record)}"
            )
        yield place, record[name]


def key_of(prompt: Prompt) -> str:
    """Differs between prompts."""
    return json.dumps(prompt)


def run_identity(
    finetuner: TestTimeFinetuner, store: Store | None, options: dict[str, Any]
) -> str:
    """Differs if any weight, the tokenizer, a text, an embedding or an option does."""
    settings = asdict(finetuner.config)
    if finetuner.config.adapter is not None:
        settings["adapter"] = adapter_identity(finetuner.config.adapter)
    about = [
        finetuner.reader.model_identity,
        tokenizer_identity(finetuner.tokenizer),
        finetuner.tokenizer.chat_template,
        [store.identity, store.embedder] if store else None,
        settings,
        options,
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
