"""The command of ``hullft-ops`` that builds experts for a datastore."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hullft_ops._terminal import echo
from hullft_ops.cli import options
from hullft_ops.cli.errors import Command, Commands, errors_of

EXAMPLE = "Example: hullft-ops experts build store --passages 96 --out experts"
# The options that `build_experts` takes by the same names.
_SETTINGS = (
    "clusters",
    "rank",
    "passages",
    "lr",
    "max_length",
    "dtype",
    "full",
    "seed",
)
experts = typer.Typer(
    cls=Commands,
    help="Experts for the regions of a datastore.",
    no_args_is_help=True,
    epilog=EXAMPLE,
)


@experts.command(cls=Command, epilog=EXAMPLE)
@errors_of("experts build")
def build(
    store: Annotated[Path, typer.Argument(help="Directory of a datastore.")],
    out: Annotated[
        Path, typer.Option(help="New folder for the experts, or one to finish.")
    ],
    model: options.ModelOption = None,
    allow_missing_weights: options.AllowMissingOption = False,
    device: options.DeviceOption = None,
    clusters: Annotated[int, typer.Option(help="Number of experts.")] = 64,
    rank: Annotated[int, typer.Option(help="Rank of each adapter.")] = 16,
    passages: Annotated[
        int | None,
        typer.Option(
            help="Texts to train each expert on, nearest first.", show_default="all"
        ),
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 5e-4,
    max_length: options.MaxLengthOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bfloat16 to train under autocast.", show_default="float32"),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights instead of adapters.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Chooses clusters and initial values.")] = 0,
    engine: options.EngineOption = options.Engine.process,
    workers: options.WorkersOption = None,
    threads_per_worker: options.ThreadsOption = None,
    gpus_per_worker: options.GpusOption = None,
) -> None:
    """Train an adapter for each cluster of a datastore; after a kill, run it again."""
    given = dict(locals())
    from hullft_ops.ttft import build_experts, load_model
    from hullft_ops.ttft.evaluation.config import open_store

    on_ray = options.workers_of(
        engine, workers, threads_per_worker, gpus_per_worker, device
    )
    texts = open_store(store)
    loaded, tokenizer = load_model(
        model,
        device or "cpu",
        allow_missing_weights=allow_missing_weights,
        say=partial(echo, err=True),
    )
    train = None
    if on_ray is not None:
        from hullft_ops.ttft.scale.experts import ray_training

        train = ray_training(model, store, on_ray)
    settings = {name: given[name] for name in _SETTINGS}
    console = Console(stderr=True)
    built = build_experts(
        loaded, tokenizer, texts, out, **settings, console=console, train=train
    )
    megabytes = (
        sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    )
    least, most = int(built.sizes.min()), int(built.sizes.max())
    echo(
        f"{len(built)} experts in {out}, {megabytes:.1f} MB, of {least} to {most} texts each"
    )
