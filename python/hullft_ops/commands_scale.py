"""The options of ``hullft-ops`` that spread a command over the workers of Ray."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hullft_ops.ttft.scale.cluster import Workers


class Engine(StrEnum):
    """What runs a command."""

    process = "process"
    ray = "ray"


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


def workers_of(
    engine: Engine, workers: int | None, threads: int | None, gpus: float | None
) -> "Workers | None":
    """The workers asked for; None for this process.

    Raises:
        ImportError: Ray is asked for and not installed.
        ScaleError: a number out of range, or options of Ray without it.
    """
    from hullft_ops.ttft.errors import ScaleError

    if engine is Engine.process:
        given = {"workers": workers, "threads-per-worker": threads, "gpus-per-worker": gpus}
        for name, value in given.items():
            if value is not None:
                raise ScaleError(f"--{name} needs --engine ray")
        return None
    from hullft_ops.ttft.scale.cluster import Workers, import_ray

    import_ray()
    try:
        return Workers(workers, 1 if threads is None else threads, gpus or 0.0)
    except ValueError as error:
        raise ScaleError(str(error)) from error
