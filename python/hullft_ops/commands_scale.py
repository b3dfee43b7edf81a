"""The workers of Ray that the command line asks for."""

from typing import TYPE_CHECKING

from hullft_ops.commands_options import Engine

if TYPE_CHECKING:
    from hullft_ops.ttft.scale.cluster import Workers


def workers_of(
    engine: Engine,
    workers: int | None,
    threads: int | None,
    gpus: float | None,
    device: str | None = None,
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
    if device is not None:
        raise ScaleError("--device needs --engine process, --gpus-per-worker is that of Ray")
    from hullft_ops.ttft.scale.cluster import Workers, import_ray

    import_ray()
    try:
        return Workers(workers, 1 if threads is None else threads, gpus or 0.0)
    except ValueError as error:
        raise ScaleError(str(error)) from error
