"""The datastore of a folder, which embeds a passage once, however often other files change."""

import hashlib
import json
from collections.abc import Generator, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from rich.console import Console

from hullft_ops._terminal import show
from hullft_ops.ttft.store.build import Cutting, index_corpus, text_digest
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.embedding import Embedder, encode_checked
from hullft_ops.ttft.store.format import JOURNAL_FILE, MANIFEST_FILE, remove_all_but
from hullft_ops.ttft.store.sources import Counts, Source
from hullft_ops.ttft.store.writer import locked

_NAME_DIGITS = 12


def folder_datastore(
    corpus: Path, embedder: Embedder, cutting: Cutting, root: Path, console: Console
) -> Datastore:
    """The datastore of the texts in ``corpus``, kept in a directory below ``root``.

    If no file has changed, nothing is embedded. If some have, the folder's earlier datastore gives
    the vectors of the passages that stayed, and is then removed. After a kill, the next call goes
    on as `index_corpus` does, if the files are the same. Raises what `index_corpus` does.
    """
    source = Source(corpus.resolve())
    key = _key(source, embedder, cutting)
    path = root / f"{key}-{_fingerprint(source)}"
    if (path / MANIFEST_FILE).exists():
        store = Datastore.open(path)
        show(console, f"{corpus} has not changed: {len(store)} passages in {path}")
        return store
    show(console, f"datastore of {corpus}: {path}")
    earlier = [old for old in root.glob(f"{key}-*") if old != path]
    vectors = _Reused(embedder, earlier)
    store = index_corpus(
        source,
        path,
        embedder,
        cutting=cutting,
        mode="resume",
        console=console,
        encode=vectors.encode,
    )
    binary = store.manifest.sources[0].get("binary", 0)
    skipped = f"; {binary} files that are not text were skipped" if binary else ""
    show(console, f"{len(store)} passages, {vectors.embedded} of them embedded now{skipped}")
    for old in (old for old in earlier if not old.is_symlink()):
        # Another process that is writing it needs it.
        with suppress(ValueError), locked(old):
            for name in (MANIFEST_FILE, JOURNAL_FILE):
                (old / name).unlink(missing_ok=True)
            remove_all_but(old, None)
            if not any(old.iterdir()):
                old.rmdir()
    return store


class _Reused:
    """Vectors by the digest of their passage, and the embedder for passages without one."""

    def __init__(self, embedder: Embedder, datastores: Iterable[Path]) -> None:
        self.embedded = 0
        self._embedder = embedder
        self._known: dict[bytes, np.ndarray] = {}
        for path in datastores:
            if (path / MANIFEST_FILE).exists():
                store = Datastore.open(path)
                rows = store.embeddings.numpy()
                self._known.update(zip(map(text_digest, store.texts), rows, strict=True))

    def encode(self, batches: Iterable[list[str]]) -> Generator[np.ndarray]:
        """The vectors of each batch, see `EncodeBatches`."""
        for texts in batches:
            rows = [self._known.get(text_digest(text)) for text in texts]
            new = [text for text, row in zip(texts, rows, strict=True) if row is None]
            found = iter(encode_checked("folder_datastore", self._embedder, new) if new else ())
            self.embedded += len(new)
            yield np.stack([next(found) if row is None else row for row in rows])


def _key(source: Source, embedder: Embedder, cutting: Cutting) -> str:
    """Names the folder, and all that makes texts and vectors of it."""
    cut = (cutting.chunk_tokens, cutting.overlap, cutting.min_chars)
    values = (source.name, embedder.name, embedder.dim, *cut)
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:_NAME_DIGITS]


def _fingerprint(source: Source) -> str:
    """Names the present texts and their places."""
    digest = hashlib.sha256()
    for record in source.records(Counts()):
        digest.update(json.dumps([record["source"], record["text"]]).encode())
    return digest.hexdigest()[:_NAME_DIGITS]
