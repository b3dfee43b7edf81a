"""``hullft-ops adapt``: adapt to one prompt, and print what came of it."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

from transformers import TextStreamer

from hullft_ops.cli.options import fields_of
from hullft_ops.ttft.adaptation import Adaptation
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.endings import StopAt
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.models.loading import ModelConfig
from hullft_ops.ttft.prefix import Prefix
from hullft_ops.ttft.question import question_of
from hullft_ops.ttft.search import embedder_for
from hullft_ops.ttft.store.corpus import CorpusConfig
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.index import folder_datastore
from hullft_ops.ttft.techniques import TTFTConfig
from hullft_ops.ttft.techniques.passage_steps import PassageSteps
from hullft_ops.ttft.terminal import counted, echo, printable, waiting
from hullft_ops.ttft.training import Deadline
from hullft_ops.ttft.write import continue_questions

_EXCERPT_CHARS = 60


class _Printer(TextStreamer):
    """Prints a continuation while the model writes it."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(printable(text, lines=True), stream_end)


def adapt(
    model: Annotated[dict[str, Any], fields_of(ModelConfig)],
    settings: Annotated[dict[str, Any], fields_of(TTFTConfig)],
    files: Annotated[dict[str, Any], fields_of(CorpusConfig)],
    *,
    prompt: str,
    suffix_file: Path | None = None,
    embedder: str = DEFAULT_EMBEDDER,
    store: Path | None = None,
    corpus: str | None = None,
    seconds: float | None = None,
    chat: bool = False,
    max_new_tokens: int = 64,
    stop_at: StopAt | None = None,
) -> None:
    """Adapt to a prompt; print passages, and the continuations without and with adaptation.

    Args:
        model: the language model.
        settings: how to adapt.
        files: which files of --corpus to read, and how.
        prompt: the text to adapt to; - for stdin.
        suffix_file: file with the text after the cursor, of which the model reads what is before
            and after, if it was trained to fill in.
        embedder: name or folder of a sentence-transformers model.
        store: folder of a datastore, which hullft-ops index makes; or give --corpus.
        corpus: your folder of texts, or what else hullft-ops index reads, searched by words unless
            --search or --n-select needs embeddings. Its datastore stays in hullft_datastores.
        seconds: budget for retrieval and training; steps that do not fit are skipped.
        chat: continue it as a message, in the chat template of an instruct model.
        max_new_tokens: length of the continuation.
        stop_at: where it may end earlier: after its first line, after the block of lines indented
            at least as much, or after the line that closes every open bracket.
    """
    if (store is None) == (corpus is None):
        raise ValueError("give one of --store and --corpus")
    if prompt == "-":
        prompt = text_in(prompt)
    behind_cursor = "" if suffix_file is None else text_in(str(suffix_file))
    Deadline(seconds)  # Refuses a wrong budget before the work.
    config = TTFTConfig(**settings)
    if corpus is not None and not config.n_select and config.search is None:
        # The answer would wait until all passages are embedded.
        config = replace(config, search="lexical")
    finetuner = loaded_finetuner(
        ModelConfig(**model), config, embedder, store=store, corpus=corpus, files=files
    )
    # Two samples would differ without any adaptation.
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "stop_at": stop_at,
        "streamer": _Printer(
            finetuner.tokenizer, skip_prompt=True, skip_special_tokens=True
        ),
    }
    question = question_of(finetuner.tokenizer, prompt, suffix=behind_cursor, chat=chat)
    echo("without adaptation:")
    continue_questions(finetuner.language_model, [question], [Prefix()], **options)
    with ExitStack() as until_restored:
        with waiting("adapting to the prompt"):
            adapted = finetuner.adapted(question, seconds=seconds)
            adaptation = until_restored.enter_context(adapted)
        _print_training(adaptation)
        echo("with adaptation:")
        adaptation.generate(**options)


def loaded_finetuner(
    model_config: ModelConfig,
    config: TTFTConfig,
    embedder_name: str,
    *,
    store: Path | None,
    corpus: str | None = None,
    files: dict[str, Any] | None = None,
) -> TestTimeFinetuner:
    """The finetuner of a command. The slowest to load comes last."""
    datastore = Datastore.open(store) if store is not None else None
    with waiting("loading the model"):
        model, tokenizer = model_config.load()
    embedder = None
    if store or corpus:
        embedder = embedder_for([config], datastore, embedder_name)
    if corpus is not None:
        datastore = folder_datastore(corpus, embedder, **files or {})
        echo(f"datastore: {datastore.folder}", *datastore.summary(), err=True)
    return TestTimeFinetuner(model, tokenizer, datastore, embedder, config)


def text_in(file: str) -> str:
    """The text in the file, or in stdin, with lines that end in a newline alone.

    ValueError if it is not UTF-8.
    """
    content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return TextIOWrapper(BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeError as error:
        raise ValueError(f"prompt {file}: {error}") from error


def _print_training(adaptation: Adaptation) -> None:
    store = adaptation.neighbours.store
    support = adaptation.report(PassageSteps)
    for number, count in enumerate(support.steps if support else []):
        if count:
            index, weight = support.indices[number], support.weights[number]
            excerpt = " ".join(store.texts[index].split())[:_EXCERPT_CHARS]
            steps = counted(count, "step")
            echo(f"{_source(store, index)}: weight {weight:.3f}, {steps}: {excerpt}")
    if adaptation.passages:
        positions = [p for passage in adaptation.passages for p in passage.positions]
        sources = [_source(store, position) for position in positions]
        echo(
            f"retrieved passages before the prompt, nearest last: {', '.join(sources)}"
        )
    stages = [f"{stage} {spent:.3f}" for stage, spent in adaptation.seconds.items()]
    gradients = counted(adaptation.passes, "gradient")
    echo(f"{counted(adaptation.total_steps, 'step')} with {gradients}")
    echo(f"seconds: {', '.join(stages)}")
    if adaptation.skipped_steps:
        echo(f"{counted(adaptation.skipped_steps, 'step')} beyond the budget skipped")


def _source(store: Any, index: int) -> str:
    """A passage's source; its position if the datastore has no sources."""
    return str(store.sources[index] or index)
