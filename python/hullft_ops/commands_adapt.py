"""The command of ``hullft-ops`` that adapts to one prompt."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hullft_ops import commands_options as options
from hullft_ops.commands_errors import errors_of
from hullft_ops.commands_evaluation import configuration


def adapt(
    prompt: Annotated[str, typer.Option(help="The text to adapt to.")],
    config: options.ConfigOption = None,
    model: options.ModelOption = None,
    allow_missing_weights: options.AllowMissingOption = False,
    device: options.DeviceOption = None,
    embedder: options.EmbedderOption = None,
    store: Annotated[
        Path | None, typer.Option(help="Directory of a datastore; needed without --config.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="hullft, knn, random or sift.", show_default="hullft")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="20")] = None,
    refresh: Annotated[
        int | None, typer.Option(help="Steps per gradient.", show_default="2")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate.", show_default="2e-4 for the shipped model, 5e-5 for others"
        ),
    ] = None,
    max_length: options.MaxLengthOption = None,
    generate: Annotated[bool, typer.Option("--generate", help="Continue the prompt.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the continuation.")] = 64,
) -> None:
    """Adapt to a prompt: what was retrieved, bits per byte before and after, a continuation."""
    with errors_of("adapt"):
        from hullft_ops.ttft.adapt_command import run_adapt

        chosen = configuration(
            config,
            inputs={"model": model, "embedder": embedder, "store": store}
            | {"allow_missing_weights": allow_missing_weights or None},
            axes={"method": method, "n_select": steps, "refresh": refresh, "lr": lr}
            | {"max_length": max_length},
            default={"method": "hullft", "n_select": 20, "refresh": 2},
        )
        new_tokens = max_new_tokens if generate else None
        run_adapt(chosen, prompt, new_tokens, Console(), device=device or "cpu")
