"""The commands of ``hullft-ops`` that compare methods: evaluate, report, tune."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hullft_ops._terminal import echo
from hullft_ops.cli import options
from hullft_ops.cli.errors import errors_of
from hullft_ops.cli.options import workers_of

if TYPE_CHECKING:
    from hullft_ops.ttft.evaluation.config import Config

# About a hundred configurations, among which halving needs some two minutes for the first rung of
# the tiny model on two cores.
TUNING_GRID = {
    "method": ["knn", "hullft", "sift"],
    "n_select": [10, 20, 50],
    "refresh": [1, 2, 4],
    "lr": [5e-5, 1e-4, 2e-4, 4e-4, 8e-4],
}


def evaluate(
    config: options.ConfigOption = None,
    model: options.ModelOption = None,
    allow_missing_weights: options.AllowMissingOption = False,
    device: options.DeviceOption = None,
    embedder: options.EmbedderOption = None,
    store: options.StoreOption = None,
    experts: options.ExpertsOption = None,
    prompts: options.PromptsOption = None,
    corpus: options.CorpusOption = None,
    limit: options.LimitOption = None,
    seed: options.SeedOption = None,
    method: options.MethodOption = None,
    n_select: options.NSelectOption = None,
    refresh: options.RefreshOption = None,
    context: options.ContextOption = None,
    n_experts: options.NExpertsOption = None,
    lr: options.RatesOption = None,
    output: Annotated[
        Path, typer.Option(help="Results file; rows that it holds are not run again.")
    ] = Path("results.jsonl"),
    engine: options.EngineOption = options.Engine.process,
    workers: options.WorkersOption = None,
    threads_per_worker: options.ThreadsOption = None,
    gpus_per_worker: options.GpusOption = None,
) -> None:
    """Run methods x steps x refresh x learning rate on held-out prompts, a JSONL row each."""
    with errors_of("evaluate"):
        from hullft_ops.ttft.evaluation.inputs import open_inputs
        from hullft_ops.ttft.evaluation.results import open_results
        from hullft_ops.ttft.evaluation.runner import evaluate as run

        chosen = configuration(
            config,
            inputs={"model": model, "embedder": embedder, "store": store, "prompts": prompts}
            | {"corpus": corpus, "limit": limit, "seed": seed, "experts": experts}
            | {"allow_missing_weights": allow_missing_weights or None},
            axes={"method": method, "n_select": n_select, "refresh": refresh, "lr": lr}
            | {"context": context, "n_experts": n_experts},
            default={"method": ["knn", "hullft"]},
        )
        log = Console(stderr=True)
        asked = workers_of(engine, workers, threads_per_worker, gpus_per_worker, device)
        inputs = open_inputs(chosen, log, device=device or "cpu")
        evaluator = inputs.evaluator(chosen.seed)
        with open_results(output, evaluator.run) as results:
            if asked is None:
                run(evaluator, inputs.prompts, chosen.configurations, results, log)
            else:
                from hullft_ops.ttft.scale.evaluation import evaluate_on_ray

                evaluate_on_ray(chosen, inputs, results, asked, log)
        echo(output)


def report(
    results: Annotated[Path, typer.Argument(help="Results file of `evaluate` or `tune`.")],
    out: Annotated[Path, typer.Option(help="Directory for report.md, .png and .html.")] = Path(
        "hullft_report"
    ),
) -> None:
    """Write tables with confidence intervals, a plot of quality against time, an HTML page."""
    with errors_of("report"):
        from hullft_ops.ttft.evaluation.report import write_report

        for path in write_report(results, out):
            echo(path)


def tune(
    config: options.ConfigOption = None,
    model: options.ModelOption = None,
    allow_missing_weights: options.AllowMissingOption = False,
    device: options.DeviceOption = None,
    embedder: options.EmbedderOption = None,
    store: options.StoreOption = None,
    experts: options.ExpertsOption = None,
    prompts: options.PromptsOption = None,
    corpus: options.CorpusOption = None,
    limit: options.LimitOption = None,
    seed: options.SeedOption = None,
    method: options.MethodOption = None,
    n_select: options.NSelectOption = None,
    refresh: options.RefreshOption = None,
    context: options.ContextOption = None,
    n_experts: options.NExpertsOption = None,
    lr: options.RatesOption = None,
    seconds: Annotated[
        float, typer.Option(help="What a prompt may take, up to the adapted model.")
    ] = float("inf"),
    minutes: Annotated[float, typer.Option(help="Time limit for all of the measuring.")] = 10.0,
    results: Annotated[
        Path, typer.Option(help="Results file; a run that was killed goes on with its rows.")
    ] = Path("tune.jsonl"),
    output: Annotated[
        Path, typer.Option(help="Configuration to write, for `evaluate` and `adapt`.")
    ] = Path("tuned.json"),
) -> None:
    """Pick method, steps, refresh and learning rate on held-out prompts by successive halving."""
    with errors_of("tune"):
        from hullft_ops.ttft.evaluation.inputs import open_inputs
        from hullft_ops.ttft.evaluation.tuning import run_tuning

        chosen = configuration(
            config,
            inputs={"model": model, "embedder": embedder, "store": store, "prompts": prompts}
            | {"corpus": corpus, "limit": limit, "seed": seed, "experts": experts}
            | {"allow_missing_weights": allow_missing_weights or None},
            axes={"method": method, "n_select": n_select, "refresh": refresh, "lr": lr}
            | {"context": context, "n_experts": n_experts},
            default=TUNING_GRID,
        )
        log = Console(stderr=True)
        inputs = open_inputs(chosen, log, device=device or "cpu")
        tuned = run_tuning(
            chosen, inputs, results, output, seconds=seconds, limit=60 * minutes, log=log
        )
        echo(
            f"{tuned.name}: {tuned.bits_per_byte:.4f} bits per byte "
            f"({tuned.bits_per_byte_before:.4f} without), {tuned.seconds:.3f} s a prompt, "
            f"on {tuned.prompts} prompts",
            output,
        )
        if tuned.bits_per_byte > tuned.bits_per_byte_before:
            typer.echo(
                "Adapting hurts: even with these settings, prompts take more bits than without."
            )


def configuration(
    config: str | None, inputs: dict[str, Any], axes: dict[str, Any], default: dict[str, Any]
) -> "Config":
    """The configuration file's content, with what the command line says in place of it.

    ``axes`` take the place of those in all of the file's settings; without any, of the default's.
    """
    from hullft_ops.ttft.evaluation.config import Config, read_config

    read = read_config(config) if config else Config()
    changed = read.with_changes(**inputs)
    given = {name: values for name, values in axes.items() if values is not None and values != []}
    return changed.with_changes(settings=tuple(s | given for s in changed.settings or (default,)))
