"""The main job end to end: adapt a language model to held-out passages of real text.

A prompt is a passage of a document that the datastore does not hold. As in the papers of HullFT
and SIFT, the prompt's own text is what is scored: a method retrieves the prompt's neighbours,
finetunes on those it selects, and then the bits per byte of the prompt are measured. The prompt
itself is never trained on.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hullft_ops._terminal import show
from hullft_ops.collect_env import collect_env
from hullft_ops.ttft import Datastore, Embedder, TestTimeFinetuner, bits_per_byte
from hullft_ops.ttft.comparison import METHODS, Comparison, PromptRuns, Run
from hullft_ops.ttft.context import context_length, scored_context
from hullft_ops.ttft.corpus import Corpus, Passage
from hullft_ops.ttft.loading import (
    InputError,
    checked_device,
    load_corpus,
    load_model,
    open_embedder,
    open_or_build,
)
from hullft_ops.ttft.methods import MAX_STEPS
from hullft_ops.ttft.progress import progress_bar
from hullft_ops.ttft.report import comparison_sentences, comparison_table, write_json, write_plot
from hullft_ops.ttft.tiny import default_lr

FORMAT_VERSION = 1
POOL_SIZE = 200
SCORED = "the prompt's own text, of a held-out document; it is retrieved for, never trained on"


@dataclass(frozen=True)
class DemoOptions:
    """What to compare, and where to write it.

    Attributes:
        model: name or directory of a causal language model; the shipped tiny model when None.
        device: where the model runs, by torch's name.
        corpus: JSONL file whose records have a string "text"; sources of installed packages
            when None.
        embedder: name or directory, as `load_embedder` takes it.
        prompts: number of held-out passages to adapt to.
        steps: optimizer steps for each prompt, the same for every method.
        lr: Adam's learning rate, the same for every method; `default_lr` when None.
        max_length: tokens of a text to train on, and of what a model reads that has no limit of its
            own; the model's context when None.
        output: directory for ``demo.json`` and ``demo.png``.
        datastore: directory that keeps a datastore for each corpus and embedder, named by the
            fingerprint of both; ``output / "datastore"`` when None.
        seed: chooses the prompts among the held-out passages.
        allow_missing_weights: as `load_model` takes it.

    Raises:
        InputError: ``prompts`` below 1, ``steps`` not in 1..100,000, ``lr`` not above 0 or
            infinite, ``max_length`` below 2, or no such device.
    """

    model: str | None
    device: str
    corpus: Path | None
    embedder: str
    prompts: int
    steps: int
    lr: float | None
    max_length: int | None
    output: Path
    datastore: Path | None
    seed: int
    allow_missing_weights: bool = False

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise InputError(f"prompts must be at least 1, got {self.prompts}")
        if not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"steps must be in 1..{MAX_STEPS}, got {self.steps}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise InputError(f"lr must be above 0 and finite, got {self.lr}")
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"max_length must be at least 2, got {self.max_length}")
        checked_device(self.device)

    @property
    def learning_rate(self) -> float:
        return default_lr(self.model) if self.lr is None else self.lr

    @property
    def datastores(self) -> Path:
        return self.datastore or self.output / "datastore"


def run_demo(options: DemoOptions, out: Console, log: Console) -> Comparison:
    """Compare `METHODS` on held-out prompts: print a table, write a JSON and a PNG.

    The table goes to ``out`` and progress to ``log``. The two files appear whole, and only when
    every prompt has been run.

    Raises:
        InputError: the options cannot be met.
    """
    started = time.perf_counter()
    corpus = load_corpus(options.corpus, log)
    _check_sizes(corpus, options)
    model, tokenizer = load_model(
        options.model,
        checked_device(options.device),
        allow_missing_weights=options.allow_missing_weights,
    )
    score = _scoring(options, model, tokenizer)
    embedder = open_embedder(options.embedder)
    path = options.datastores / corpus.fingerprint(embedder.name)[:16]
    opened = time.perf_counter()
    store, reused = open_or_build(corpus, embedder, path, log)
    store_facts = {"path": str(path), "reused": reused, "seconds": time.perf_counter() - opened}
    prompts = choose_prompts(corpus.held_out, options.prompts, options.seed)
    try:
        finetuners = _finetuners(options, model, tokenizer, store, embedder)
        runs = _run_all(prompts, finetuners, score, log)
    except ValueError as error:
        raise InputError(str(error)) from error
    context = {
        "format_version": FORMAT_VERSION,
        "scored": SCORED,
        "config": _config(options, model),
        "corpus": _corpus_facts(corpus, embedder),
        "datastore": store_facts,
        "environment": collect_env(),
        "seconds": time.perf_counter() - started,
    }
    comparison = Comparison(context, runs)
    _report(comparison, options.output, out)
    return comparison


def choose_prompts(held_out: Sequence[Passage], count: int, seed: int) -> list[Passage]:
    """The first ``count`` by a hash of ``seed`` and text, a passage of each document in turn."""
    ranked = sorted(held_out, key=lambda p: hashlib.sha256(f"{seed}\n{p.text}".encode()).digest())
    taken: Counter[str] = Counter()
    rounds = []
    for position, passage in enumerate(ranked):
        rounds.append((taken[passage.source], position))
        taken[passage.source] += 1
    return [ranked[position] for _, position in sorted(rounds)[:count]]


def _check_sizes(corpus: Corpus, options: DemoOptions) -> None:
    if not corpus.store or len(corpus.held_out) < options.prompts:
        raise InputError(
            f"corpus {corpus.name}: too few texts: {corpus.documents} documents give "
            f"{len(corpus.store)} passages to retrieve and {len(corpus.held_out)} to prompt with, "
            f"need at least 1 and {options.prompts} (prompts)"
        )


def _scoring(
    options: DemoOptions, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[str], float]:
    """Gives the bits per byte of a text.

    Raises:
        InputError: ``max_length`` is above the model's context, or needed and not given.
    """
    name, given = f"model {_model_name(options)}", options.max_length
    try:
        context_length(name, model, tokenizer, given)
        length = scored_context(name, model, tokenizer, given)
    except ValueError as error:
        raise InputError(str(error)) from error
    return lambda text: bits_per_byte(model, tokenizer, text, max_length=length)


def _finetuners(
    options: DemoOptions,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: Datastore,
    embedder: Embedder,
) -> dict[str, TestTimeFinetuner]:
    made = {
        method.key: TestTimeFinetuner(
            model,
            tokenizer,
            store,
            embedder,
            n_select=options.steps,
            refresh=method.refresh,
            method=method.selection,
            # kNN cannot take more texts than the pool has.
            pool_size=max(POOL_SIZE, options.steps),
            lr=options.learning_rate,
            max_length=options.max_length,
        )
        for method in METHODS
        if method.selection
    }
    first, *others = made.values()
    for other in others:
        other.share_memory_with(first)
    return made


def _run_all(
    prompts: Sequence[Passage],
    finetuners: dict[str, TestTimeFinetuner],
    score: Callable[[str], float],
    log: Console,
) -> list[PromptRuns]:
    # The first adaptation pays for allocations and thread pools: no method should.
    for finetuner in finetuners.values():
        with finetuner.adapted(prompts[0].text):
            pass
    results = []
    with progress_bar(log) as bar:
        task = bar.add_task("adapting", total=len(prompts) * len(finetuners))
        for prompt in prompts:
            runs = {"none": Run(score(prompt.text))}
            for key, finetuner in finetuners.items():
                with finetuner.adapted(prompt.text) as report:
                    runs[key] = Run(score(prompt.text), report)
                bar.advance(task)
            results.append(PromptRuns(prompt.source, prompt.text, runs))
    return results


def _model_name(options: DemoOptions) -> str:
    return options.model or "the tiny model of hullft_ops"


def _config(options: DemoOptions, model: PreTrainedModel) -> dict[str, Any]:
    paths = {key: str(value) for key, value in asdict(options).items() if isinstance(value, Path)}
    return {
        **asdict(options),
        **paths,
        "model": _model_name(options),
        "model_parameters": model.num_parameters(),
        "lr": options.learning_rate,
        "pool_size": max(POOL_SIZE, options.steps),
        "threads": torch.get_num_threads(),
    }


def _corpus_facts(corpus: Corpus, embedder: Embedder) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "documents": corpus.documents,
        "held_out_documents": corpus.held_out_documents,
        "passages": len(corpus.store),
        "held_out_passages": len(corpus.held_out),
        "repeated_passages_left_out": corpus.repeated,
        "held_out_passages_in_store_left_out": corpus.leaked,
        "malformed_lines": corpus.malformed,
        "fingerprint": corpus.fingerprint(embedder.name),
    }


def _report(comparison: Comparison, output: Path, out: Console) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_json(comparison, output / "demo.json")
    write_plot(comparison, output / "demo.png")
    out.print(comparison_table(comparison))
    for line in comparison_sentences(comparison):
        out.print(line, highlight=False)
    show(out, output / "demo.json", output / "demo.png")
