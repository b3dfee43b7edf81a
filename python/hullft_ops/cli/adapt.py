"""The command of ``hullft-ops`` that adapts to one prompt."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hullft_ops._terminal import echo, printable
from hullft_ops.cli import options
from hullft_ops.cli.errors import errors_of
from hullft_ops.cli.evaluate import configuration

if TYPE_CHECKING:
    from hullft_ops.ttft.evaluation.config import Config
    from hullft_ops.ttft.report import AdaptationReport
    from hullft_ops.ttft.store.datastore import Datastore
    from hullft_ops.ttft.store.embedding import SentenceTransformerEmbedder

_SCORING = "out of memory while scoring the prompt: give a shorter --prompt or a smaller --model"
_GENERATING = (
    "out of memory while generating: lower --max-new-tokens or give a shorter --prompt"
)
_SAVING = "out of memory while saving: give a shorter --prompt or leave out --save"
_STAGES = ("embed", "search", "select", "tokenize", "forward", "backward", "step")


@errors_of("adapt")
def adapt(
    prompt: Annotated[str | None, typer.Option(help="The text to adapt to.")] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the text to adapt to, - for stdin; its last line end is cut."
        ),
    ] = None,
    config: options.ConfigOption = None,
    model: options.ModelOption = None,
    allow_missing_weights: options.AllowMissingOption = False,
    device: options.DeviceOption = None,
    embedder: options.EmbedderOption = None,
    store: Annotated[
        Path | None, typer.Option(help="Directory of a datastore; or give --corpus.")
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Your folder of texts. Its datastore stays in hullft_datastores; only "
            "changed files are embedded again."
        ),
    ] = None,
    experts: options.ExpertsOption = None,
    method: Annotated[
        str | None,
        typer.Option(help="hullft, knn, random or sift.", show_default="hullft"),
    ] = None,
    n_select: Annotated[
        int | None,
        typer.Option(
            "--n-select", "--steps", help="Optimizer steps.", show_default="20"
        ),
    ] = None,
    refresh: Annotated[
        int | None, typer.Option(help="Steps per gradient.", show_default="2")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Nearest texts to put before the prompt.", show_default="0"),
    ] = None,
    n_experts: Annotated[
        int | None,
        typer.Option("--n-experts", help="Most experts to merge.", show_default="0"),
    ] = None,
    lr: options.RateOption = None,
    max_length: options.MaxLengthOption = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Time to adapt, retrieval included; steps that do not fit are left out.",
            show_default="no limit",
        ),
    ] = None,
    generate: Annotated[
        bool | None,
        typer.Option(
            "--generate/--no-generate",
            help="Continue the prompt.",
            show_default="with --corpus",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Length of the continuation.")
    ] = 64,
    save: Annotated[
        Path | None,
        typer.Option(
            help="New folder for the adaptation, as a LoRA that PEFT and vLLM load."
        ),
    ] = None,
    save_rank: Annotated[int, typer.Option(min=1, help="Rank of that LoRA.")] = 16,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="PNG file: chosen texts and experts, and bits per byte over the steps."
        ),
    ] = None,
) -> None:
    """Adapt to a prompt; print the texts, bits per byte before and after, a continuation."""
    given = dict(locals())
    import torch

    from hullft_ops.ttft import TestTimeFinetuner, load_model, plot_adaptation
    from hullft_ops.ttft.evaluation.config import (
        finetuner_options,
        open_experts,
        open_store,
    )
    from hullft_ops.ttft.model.loading import checked_device
    from hullft_ops.ttft.model.memory import out_of_memory_explained
    from hullft_ops.ttft.store.embedding import encode_checked, open_embedder

    text = _prompt(prompt, prompt_file)
    if not text.strip():
        raise ValueError(f"the prompt must have text, got {text[:20]!r}")
    chosen = configuration(
        given, default={"method": "hullft", "n_select": 20, "refresh": 2}
    )
    if store is not None and corpus is not None:
        raise ValueError("give one of --store and --corpus")
    directory = None if corpus is not None else chosen.store
    settings = _checked_settings(chosen, save, plot)
    place = checked_device(device or "cpu")
    if directory is not None:
        texts = open_store(directory)
    elif chosen.corpus is None:
        raise ValueError(
            "store must be given, `hullft-ops index` makes one; or give --corpus"
        )
    loaded, tokenizer = load_model(
        chosen.model,
        place,
        allow_missing_weights=chosen.allow_missing_weights,
        say=partial(echo, err=True),
    )
    encoder, merged = open_embedder(chosen.embedder), open_experts(chosen.experts)
    if directory is None and chosen.corpus is not None:
        texts = _store_of(chosen.corpus, encoder)
    scores: list[tuple[int, float]] = []

    def score(steps: int) -> None:
        scores.append((steps, ttft.score_text(text).value))

    try:
        arguments = finetuner_options(settings, chosen.seed, merged)
        # Within a budget, scoring would take the time of steps.
        arguments["on_step"] = score if plot is not None and seconds is None else None
        ttft = TestTimeFinetuner(loaded, tokenizer, texts, encoder, **arguments)
    # A file's values may have any type.
    except TypeError as error:
        raise ValueError(str(error)) from error
    continued = saved = None
    with out_of_memory_explained(_SCORING):
        before = ttft.score_text(text).value
    with ttft.adapted(text, seconds=seconds) as report:
        with out_of_memory_explained(_SCORING):
            after = ttft.score_text(text).value
        if generate or (generate is None and corpus is not None):
            with out_of_memory_explained(_GENERATING):
                continued = ttft.continuation(text, max_new_tokens=max_new_tokens)
        if save is not None:
            with out_of_memory_explained(_SAVING):
                saved = report.save_adapter(save, rank=save_rank, text=text)
    out = Console()
    if report.indices:
        out.print(_table(report, texts))
    echo(*_facts(report, context=bool(settings.get("context")), seconds=seconds))
    echo(f"bits per byte of the prompt: {before:.4f} before, {after:.4f} after")
    if not after <= before:  # NaN too
        gentler = (
            "Fewer steps, a lower learning rate or texts" if report.losses else "Texts"
        )
        echo(
            "Adapting hurt: the model predicts this prompt worse than before. "
            f"{gentler} closer to the prompt may help."
        )
    if saved is not None:
        names = saved.left_out
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        left_out = f"; it leaves out {', '.join(names[:2])}{more}" if names else ""
        echo(
            f"saved to {save}: a LoRA of rank {save_rank} with {100 * saved.share:.1f} % of the "
            f"squared change, {saved.bits_per_byte['saved']:.4f} bits per byte{left_out}"
        )
    if plot is not None:
        plot_adaptation(
            plot,
            report,
            texts,
            torch.from_numpy(encode_checked("adapt", encoder, [text])[0]),
            [(0, before), *scores, (report.optimizer_steps, after)],
            experts=merged,
            pool_size=arguments.get("pool_size", 200),
        )
        echo(f"plot: {plot}")
    if continued is not None:
        print(printable(continued, lines=True) if out.is_terminal else continued)


def _prompt(prompt: str | None, file: Path | None) -> str:
    if file is None and prompt is not None:
        return prompt
    if file is None or prompt is not None:
        raise ValueError("give one of --prompt and --prompt-file")
    content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {file}: not UTF-8") from error
    return text.removesuffix("\n").removesuffix("\r")


def _checked_settings(
    config: "Config", save: Path | None, plot: Path | None
) -> dict[str, Any]:
    """The one configuration; a ValueError says what `adapt` cannot do, before the work."""
    from hullft_ops.ttft._files import replaceable
    from hullft_ops.ttft.plot import check_plot

    if len(config.configurations) != 1:
        raise ValueError(
            f"adapt takes one configuration, got {len(config.configurations)}"
        )
    [settings] = config.configurations
    if settings.get("reuse") is not None:
        raise ValueError("settings: reuse is for evaluate alone")
    if save is not None and not (settings.get("n_select") or settings.get("n_experts")):
        raise ValueError(
            "--save needs n_select or n_experts above 0: else nothing changes"
        )
    try:
        if save is not None:
            replaceable(save, overwrite=False)
        if plot is not None:
            check_plot(plot)
    except FileExistsError as error:
        raise ValueError(f"--save must name a new folder, {save} exists") from error
    except ImportError as error:
        raise ValueError(str(error)) from error
    return settings


def _facts(
    report: "AdaptationReport", *, context: bool, seconds: float | None
) -> Iterator[str]:
    stages = [*_STAGES]
    if context:
        places = ", ".join(map(str, report.context_indices)) or "none fits"
        yield f"texts before the prompt, nearest last: {places}"
    if report.expert_indices:
        merged = zip(report.expert_indices, report.expert_weights, strict=True)
        shown = ", ".join(f"{index} ({weight:.3f})" for index, weight in merged)
        yield f"experts merged, with their weights: {shown}"
        stages.append("merge")
    if report.context_indices:
        stages.append("prefill")
    took = ", ".join(
        f"{stage} {getattr(report, f'seconds_{stage}'):.3f}" for stage in stages
    )
    yield (
        f"{report.optimizer_steps} steps with {report.forward_backward_passes} gradients; "
        f"seconds: {took}"
    )
    if report.steps_left_out:
        yield f"{report.steps_left_out} more steps did not fit into {seconds:g} s"


def _store_of(corpus: Path, embedder: "SentenceTransformerEmbedder") -> "Datastore":
    from hullft_ops.ttft.evaluation.config import refusing
    from hullft_ops.ttft.evaluation.corpus import DATASTORES
    from hullft_ops.ttft.store.build import Cutting, folder_datastore

    cutting, root = Cutting(embedder.tokenizer, embedder.max_tokens), Path(DATASTORES)
    with refusing(f"corpus {corpus}"):
        return folder_datastore(corpus, embedder, cutting, root, Console(stderr=True))


def _table(report: "AdaptationReport", store: "Datastore") -> Table:
    table = Table(
        box=box.SIMPLE, title=f"{report.support_size} texts by {report.method}"
    )
    for name in ("position", "weight", "steps"):
        # Otherwise the texts would take the room of the numbers.
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    table.add_column("text", no_wrap=True, overflow="ellipsis")
    chosen = zip(report.indices, report.weights, report.steps_taken, strict=True)
    for index, weight, count in chosen:
        excerpt = Text(printable(" ".join(store.texts[index].split())))
        table.add_row(str(index), f"{weight:.3f}", str(count), excerpt)
    return table
