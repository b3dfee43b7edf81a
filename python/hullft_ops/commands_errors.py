"""How the commands of ``hullft-ops`` end where they cannot do what they are asked."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def errors_of(command: str) -> Iterator[None]:
    """Turn what cannot be met, memory included, into one line and exit code 2."""
    from torch import OutOfMemoryError
    from transformers.utils.logging import disable_progress_bar

    from hullft_ops.ttft.demo_inputs import DemoError
    from hullft_ops.ttft.errors import NonFiniteLossError, ScaleError
    from hullft_ops.ttft.evaluation.config import ConfigError

    # Loading a model would draw a bar of its own through ours.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except (
        ConfigError,
        DemoError,
        NonFiniteLossError,
        OSError,
        OutOfMemoryError,
        ScaleError,
    ) as error:
        typer.echo(f"hullft-ops {command}: {error}", err=True)
        raise typer.Exit(2) from error
