"""How the commands of ``hullft-ops`` end if they cannot do their work."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
import typer.core

from hullft_ops._terminal import echo, printable

# A command saves its progress, so the next run can continue.
_ADVICE = {
    "adapt": "run the same command again; with --corpus it embeds only the rest",
    "demo": "run the same command again; it reuses its datastore if that was finished",
    "evaluate": "run the same command to continue; --output keeps its rows",
    "experts build": "run the same command to continue with the next expert",
    "index": "run the same command with --resume to continue (without --append or --restart)",
    "tune": "run the same command to continue; --results keeps its rows",
}


class _UntypedFlags:
    """A command whose help names no type for its flags, which take no value."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(_UntypedFlags, typer.core.TyperCommand):
    """A command of ``hullft-ops``."""


class Commands(_UntypedFlags, typer.core.TyperGroup):
    """Errors of the command line quote it, and a shell's ``*`` puts names of files there."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(message := getattr(error, "message", None), str):
                error.message = printable(message, lines=True)  # type: ignore[attr-defined]
            raise


@contextmanager
def errors_of(command: str) -> Iterator[None]:
    """If the body of a command fails, print one line and exit with code 2, or 130 after Ctrl-C."""
    from torch import OutOfMemoryError
    from transformers.utils.logging import disable_progress_bar

    from hullft_ops.ttft.errors import NonFiniteLossError
    from hullft_ops.ttft.model.memory import keep_freed_memory

    keep_freed_memory()
    # Loading a model would draw its own bar through ours.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    shown = warnings.showwarning

    def show(message: Warning | str, *place: Any, **options: Any) -> None:
        if str(message).startswith("TestTimeFinetuner: "):
            typer.echo(f"hullft-ops {command}: {message}", err=True)
        else:
            shown(message, *place, **options)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    except (ValueError, NonFiniteLossError, OSError, OutOfMemoryError) as error:
        echo(f"hullft-ops {command}: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        goes_on = _ADVICE.get(command, "nothing was written")
        echo(f"hullft-ops {command}: interrupted: {goes_on}", err=True)
        raise typer.Exit(130) from error
