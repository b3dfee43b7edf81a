"""From the command line to the call of a command's function, whose signature tyro reads."""

import dataclasses
import inspect
import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from typing import Any

import tyro
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hullft_ops._terminal import printable
from hullft_ops.cli.errors import errors_of
from hullft_ops.cli.options import options_for
from hullft_ops.ttft.config import TTFTConfig
from hullft_ops.ttft.models.memory import keep_freed_memory

_DESCRIPTION = "Test-time finetuning of language models with HullFT."


def run_command(
    commands: dict[str, Callable[..., None]],
    config_class: type[TTFTConfig] = TTFTConfig,
) -> None:
    """Call the function of the command that ``sys.argv`` names, with its options."""
    deferred = {
        name: _deferred(command, config_class) for name, command in commands.items()
    }
    messages = io.StringIO()
    try:
        # A message may quote the command line, where a shell's * puts the names of files.
        with redirect_stderr(messages):
            call = tyro.extras.subcommand_cli_from_dict(
                deferred, prog="hullft-ops", description=_DESCRIPTION
            )
    finally:
        sys.stderr.write(printable(messages.getvalue(), lines=True))
    keep_freed_memory()
    # Loading a model would draw its own bar through ours, and a table of what `load_model` says.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    with errors_of(call.func.__name__):
        call()


def _deferred(
    command: Callable[..., None], config_class: type[TTFTConfig]
) -> Callable[..., partial[None]]:
    """The command for tyro: with options in place of dictionaries, and to be called later."""
    signature = inspect.signature(command)
    parameters = dict(signature.parameters)
    dictionaries = []
    for name, parameter in signature.parameters.items():
        options = options_for(parameter.annotation, config_class)
        if options is not None:
            hint: Any = tyro.conf.OmitArgPrefixes[options]  # type: ignore[valid-type, misc]
            parameters[name] = parameter.replace(annotation=hint)
            dictionaries.append(name)

    def bind(**arguments: Any) -> partial[None]:
        for name in dictionaries:
            arguments[name] = _values(arguments[name])
        if "config_class" in parameters:
            arguments["config_class"] = config_class
        return partial(command, **arguments)

    # What tyro reads.
    bind.__doc__ = command.__doc__
    signature = signature.replace(parameters=list(parameters.values()))
    bind.__signature__ = signature  # type: ignore[attr-defined]
    bind.__annotations__ = {
        name: parameter.annotation for name, parameter in parameters.items()
    }
    return bind


def _values(options: Any) -> dict[str, Any]:
    """The options that have a value, with lists for tuples."""
    values = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, tuple):
            value = list(value) or None
        if value is not None:
            values[field.name] = value
    return values
