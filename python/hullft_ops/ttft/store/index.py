"""Turning a corpus into a datastore, and keeping it up to date: it streams, and resumes after a
kill."""

import hashlib
import json
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.files import check_output, locked, named_in_errors, new_folder
from hullft_ops.ttft.store.corpus import Corpus, IndexConfig
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.version import (
    INFO,
    Info,
    Settings,
    open_version,
    read_info,
)
from hullft_ops.ttft.store.writer import Embed, Writer
from hullft_ops.ttft.terminal import counted, listed, progress
from hullft_ops.ttft.validation import InputError

# The folder of the datastores of corpora.
DATASTORES = Path("hullft_datastores")


def index_corpus(
    corpus: str | Path,
    path: str | Path,
    embedder: Embedder | None = None,
    config: IndexConfig | None = None,
    *,
    embed: Embed | None = None,
    **options: Any,
) -> Datastore:
    """Write a corpus into a datastore, or bring the datastore up to date, and open it.

    A document whose text the datastore has is neither cut nor embedded, nor is a passage that it
    has. A document that is not in the corpus any more is removed. Exact repetitions are not
    searched. A corpus whose files have the names, sizes and times that they had is not read.

    ``path`` appears or changes as a whole, at the end. A killed process loses at most the last 128
    vectors that it embedded: the same call reads the corpus again, goes on from there, and makes
    the same datastore.

    Args:
        corpus: a folder of text files, or a file, or a dataset that `datasets` saved.
        path: a new folder, or a datastore that this function made.
        embedder: what makes the passages' vectors; None for search by words alone.
        embed: embeds groups of texts elsewhere; None for ``embedder.encode``.
        options: fields of `IndexConfig`, in place of ``config``.

    Raises:
        InputError: the corpus cannot be read, or has nothing to index.
        FileExistsError, ValueError: as from `check_output`; or the datastore is of another corpus,
            embedder or options, is damaged, or another process writes it.
    """
    config = replace(config or IndexConfig(), **options)
    contents = Corpus(corpus, config)
    settings = _settings(corpus, embedder, config)
    path = Path(path)
    check_index(path, corpus)
    if not (path / INFO).exists():
        with (
            new_folder(path, resume=True) as folder,
            closing(Writer(folder, settings, resume=True)) as writer,
        ):
            _write(writer, contents, embedder, embed)
        return Datastore.open(path)
    info = read_info(path)
    _check_settings(path, info.settings, settings)
    if info.state != contents.state:
        with locked(path, path), named_in_errors(path):
            previous = open_version(path)[0]
            with closing(Writer(path, settings, previous, resume=True)) as writer:
                _write(writer, contents, embedder, embed)
    return Datastore.open(path)


def _settings(
    corpus: str | Path, embedder: Embedder | None, config: IndexConfig
) -> Settings:
    return Settings(
        embedder=embedder.name if embedder else None,
        dim=embedder.dim if embedder else 0,
        passage_chars=config.passage_chars,
        min_chars=config.min_chars,
        corpus=json.dumps({"path": str(Path(corpus).resolve())} | asdict(config)),
    )


def check_index(path: Path, corpus: str | Path) -> None:
    """Refuse a folder that is neither a datastore nor an output for one; raises as
    `check_output`."""
    if not (path / INFO).exists():
        check_output(path, inputs=[corpus])


def _check_settings(path: Path, old: Settings, new: Settings) -> None:
    for name, value in old:
        if value != getattr(new, name):
            raise InputError(
                f"{path} is a datastore with {name} {value}, not {getattr(new, name)}: take the "
                "same, or another output"
            )


def _write(
    writer: Writer,
    corpus: Corpus,
    embedder: Embedder | None,
    embed: Embed | None,
) -> None:
    """Write a version of a datastore with the documents of the corpus."""
    skipped: list[str] = []
    records = 0
    for record in progress(corpus.records(skipped), desc="reading", unit=" texts"):
        writer.add(record["source"], record["text"])
        records += 1
    counts = writer.choose()
    named = f" ({listed(skipped)})" if skipped else ""
    line = (
        f"{counted(records, 'record')} read, {len(skipped)} skipped{named}; "
        f"{counts.short} short and {counts.repeated} repeated passages left out"
    )
    if not counts.searched:
        raise InputError(f"{corpus.name}: nothing to index: {line}")
    source = f"{corpus.name}: {line}"
    writer.commit(embedder, embed=embed, source=source, state=corpus.state)


def folder_datastore(
    corpus: str, embedder: Embedder | None, root: Path = DATASTORES, **options: Any
) -> Datastore:
    """The datastore of ``corpus`` with fields of `IndexConfig`, kept below ``root``.

    If the corpus has changed since the last call, it is brought up to date. Raises as
    `index_corpus`.
    """
    config = IndexConfig(**options)
    version = Info.model_fields["format"].default
    settings = _settings(corpus, embedder, config).model_dump_json()
    digest = hashlib.sha256(f"{version} {settings}".encode()).hexdigest()
    name = f"{Path(corpus).resolve().name}-{digest[:8]}"
    return index_corpus(corpus, root / name, embedder, config)
