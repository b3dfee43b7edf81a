"""How the commands of ``hullft-ops`` end where they cannot do what they are asked."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from hullft_ops._terminal import echo


@contextmanager
def errors_of(command: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what cannot be met, memory included, into one line and exit code 2; so ``more``."""
    from torch import OutOfMemoryError
    from transformers.utils.logging import disable_progress_bar

    from hullft_ops.ttft.errors import NonFiniteLossError, ScaleError
    from hullft_ops.ttft.evaluation.config import ConfigError
    from hullft_ops.ttft.loading import InputError

    # Loading a model would draw a bar of its own through ours.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    ends: tuple[type[Exception], ...] = (
        ConfigError,
        InputError,
        NonFiniteLossError,
        OSError,
        OutOfMemoryError,
        ScaleError,
    )
    try:
        yield
    except (*ends, *more) as error:
        echo(f"hullft-ops {command}: {error}", err=True)
        raise typer.Exit(2) from error
