"""What several commands read: a text, and the passages of a datastore or a corpus."""

import sys
from pathlib import Path
from typing import Any

from hullft_ops._terminal import echo
from hullft_ops.ttft.embedding import SentenceTransformerEmbedder, load_embedder
from hullft_ops.ttft.store.corpus import STDIN
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.index import folder_datastore


def text_in(file: str) -> str:
    """The text in the file, or in stdin. ValueError if it is not UTF-8."""
    content = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeError as error:
        raise ValueError(f"prompt {file}: {error}") from error


def load_passages(
    store: Datastore | None, corpus: str | None, embedder: str, files: dict[str, Any]
) -> tuple[Datastore, SentenceTransformerEmbedder]:
    """The store, or else the datastore of the corpus, and its embedder."""
    # The slowest to import, so after what is refused.
    echo("loading the embedder", err=True)
    encoder = load_embedder(embedder)
    if store is None:
        store = folder_datastore(str(corpus), encoder, **files)
        echo(f"datastore: {store.folder}", *store.summary(), err=True)
    return store, encoder
