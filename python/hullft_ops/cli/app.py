"""The ``hullft-ops`` command, put together from a file for each of its commands."""

from collections.abc import Callable
from typing import Annotated

import typer

from hullft_ops import __version__
from hullft_ops.cli.adapt import adapt
from hullft_ops.cli.demo import demo
from hullft_ops.cli.errors import Command, Commands
from hullft_ops.cli.evaluate import evaluate, report, tune
from hullft_ops.cli.experts import experts
from hullft_ops.cli.index import index
from hullft_ops.cli.info import info

app = typer.Typer(
    cls=Commands,
    help="Test-time finetuning of language models with HullFT.",
    no_args_is_help=True,
    # Local variables of a failing frame may be whole corpora.
    pretty_exceptions_show_locals=False,
)
EXAMPLES: dict[Callable[..., None], str] = {
    adapt: "adapt --corpus notes --prompt 'The tide tables say'",
    demo: "demo --prompts 4 --output hullft_demo",
    evaluate: "evaluate --store store --prompts prompts.jsonl --method knn --method hullft",
    index: "index notes --out store --exclude '*.log'",
    info: "info store",
    report: "report results.jsonl --out hullft_report",
    tune: "tune --store store --prompts prompts.jsonl --minutes 5",
}
for command, example in EXAMPLES.items():
    app.command(cls=Command, epilog=f"Example: hullft-ops {example}")(command)
app.add_typer(experts, name="experts")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.")
    ] = False,
) -> None:
    if version:
        typer.echo(f"hullft-ops {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.fail("Missing command.")
