"""``hullft-ops index``: a datastore from a corpus."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from hullft_ops.cli.options import fields_of
from hullft_ops.distributed.embedding import ray_embedding
from hullft_ops.distributed.workers import Workers
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER, Precision, load_embedder
from hullft_ops.ttft.store.corpus import Corpus, IndexConfig
from hullft_ops.ttft.store.index import check_index, index_corpus
from hullft_ops.ttft.terminal import echo, waiting


def index(
    corpus: tyro.conf.Positional[str],
    reading: Annotated[dict[str, Any], fields_of(IndexConfig)],
    workers: Annotated[dict[str, Any], fields_of(Workers)],
    *,
    output: Path,
    embedder: str = DEFAULT_EMBEDDER,
    device: str | None = None,
    dtype: Precision | None = None,
    vectors: bool = True,
) -> None:
    """Build a datastore from a corpus, or bring it up to date. After a kill, run it again.

    Args:
        corpus: a folder, whose files of text and HTML are read; a file of JSON, CSV, Parquet, HTML
            or plain text; or a dataset that the library datasets saved. Files of JSON and CSV may
            be compressed.
        reading: how to read and cut it.
        workers: where to embed.
        output: new folder for the datastore, or an earlier call's, which is brought up to date.
        embedder: name or folder of a sentence-transformers model.
        device: device of the embedder: cpu, cuda, cuda:1; None for a GPU if there is one.
        dtype: bfloat16 to embed under autocast, faster where the processor has instructions for it;
            None for the embedder's own.
        vectors: embed the passages; without, the datastore is searched by words alone, and ready in
            seconds.
    """
    check_index(output, corpus)
    settings, engine = IndexConfig(**reading), Workers(**workers)
    Corpus(corpus, settings)  # Refuses a wrong one before the embedder is loaded.
    embed = None
    if engine.engine == "ray" and vectors:
        embed = ray_embedding(embedder, engine, dtype)
    loaded = None
    if vectors:
        with waiting("loading the embedder"):
            loaded = load_embedder(embedder, device=device, dtype=dtype)
    store = index_corpus(corpus, output, loaded, settings, embed=embed)
    echo(*store.summary())
