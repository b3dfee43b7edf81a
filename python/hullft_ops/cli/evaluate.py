"""The commands of ``hullft-ops`` that compare methods: evaluate, report, tune."""

from collections.abc import Mapping
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hullft_ops._terminal import echo
from hullft_ops.cli import options
from hullft_ops.cli.errors import errors_of

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
# The options that take the place of settings.
_AXES = ("method", "n_select", "refresh", "lr", "context", "n_experts", "max_length")


@errors_of("evaluate")
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
        Path, typer.Option(help="Results file; its rows are not run again.")
    ] = Path("results.jsonl"),
    engine: options.EngineOption = options.Engine.process,
    workers: options.WorkersOption = None,
    threads_per_worker: options.ThreadsOption = None,
    gpus_per_worker: options.GpusOption = None,
) -> None:
    """Run methods x steps x refresh x learning rate on held-out prompts; write JSONL rows."""
    given = dict(locals())
    from hullft_ops.ttft.evaluation import runner
    from hullft_ops.ttft.evaluation.results import open_results

    chosen = configuration(given, default={"method": ["knn", "hullft"]})
    on_ray = options.workers_of(
        engine, workers, threads_per_worker, gpus_per_worker, device
    )
    inputs = runner.open_inputs(chosen, device=device or "cpu")
    measure = None
    if on_ray is not None:
        from hullft_ops.ttft.scale.evaluation import ray_rows

        measure = ray_rows(inputs, on_ray)
    with open_results(output, inputs.evaluator.run) as results:
        runner.evaluate(inputs, results, measure)
    echo(output)


@errors_of("report")
def report(
    results: Annotated[
        Path, typer.Argument(help="Results file of `evaluate` or `tune`.")
    ],
    out: Annotated[
        Path, typer.Option(help="Directory for report.md, .png and .html.")
    ] = Path("hullft_report"),
) -> None:
    """Write tables with confidence intervals, a plot of quality against time, an HTML page."""
    from hullft_ops.ttft.evaluation.report import write_report

    echo(*write_report(results, out))


@errors_of("tune")
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
        float, typer.Option(help="Time limit for adapting to one prompt.")
    ] = inf,
    minutes: Annotated[
        float, typer.Option(help="Time limit for all adapting and scoring.")
    ] = 10.0,
    results: Annotated[
        Path, typer.Option(help="Results file; a killed run continues from its rows.")
    ] = Path("tune.jsonl"),
    output: Annotated[
        Path, typer.Option(help="Configuration to write, for `evaluate` and `adapt`.")
    ] = Path("tuned.json"),
) -> None:
    """Pick method, steps, refresh and learning rate on held-out prompts by successive halving."""
    given = dict(locals())
    from hullft_ops.ttft.evaluation.config import config_id
    from hullft_ops.ttft.evaluation.runner import open_inputs
    from hullft_ops.ttft.evaluation.tuning import run_tuning

    chosen = configuration(given, default=TUNING_GRID)
    inputs = open_inputs(chosen, device=device or "cpu")
    tuned = run_tuning(inputs, results, output, seconds=seconds, limit=60 * minutes)
    echo(
        f"{config_id(tuned.settings)}: {tuned.bits_per_byte:.4f} bits per byte "
        f"({tuned.bits_per_byte_before:.4f} without), {tuned.seconds:.3f} s a prompt, "
        f"on {tuned.prompts} prompts",
        output,
    )
    if tuned.bits_per_byte > tuned.bits_per_byte_before:
        echo(
            "Adapting hurts: even with these settings, prompts take more bits than without."
        )


def configuration(given: Mapping[str, Any], default: dict[str, Any]) -> "Config":
    """The configuration file's content, with what the command line says in place of it.

    ``given`` has a command's options by name. Those for settings take the place of the values in
    all of the file's settings; without any, in ``default``.
    """
    from hullft_ops.ttft.evaluation.config import Config, read_config

    read = read_config(given["config"]) if given.get("config") else Config()
    inputs = {field.name: given.get(field.name) for field in fields(Config)}
    # Without the flag, the file decides.
    inputs["allow_missing_weights"] = inputs["allow_missing_weights"] or None
    axes = {name: given[name] for name in _AXES if given.get(name) not in (None, [])}
    inputs["settings"] = tuple(
        settings | axes for settings in read.settings or (default,)
    )
    return read.with_changes(**inputs)
