"""Turning a corpus into a datastore: it streams, and resumes after a kill."""

import glob
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hullft_ops._terminal import counted, listed
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.files import check_output, new_folder
from hullft_ops.ttft.store.corpus import Corpus, IndexConfig, Record
from hullft_ops.ttft.store.cutting import split_passages
from hullft_ops.ttft.store.datastore import (
    Datastore,
    Embed,
    Info,
    complete,
    write_texts,
)

# The folder of the datastores of corpora.
DATASTORES = Path("hullft_datastores")


def index_corpus(
    corpus: str | Path | Corpus,
    path: str | Path,
    embedder: Embedder | None = None,
    config: IndexConfig | None = None,
    *,
    embed: Embed | None = None,
    **options: Any,
) -> Datastore:
    """Write a corpus into a datastore, and open it.

    ``path`` appears whole, at the end. A killed process loses at most the last 128 vectors that it
    embedded: the same call reads the corpus again, goes on from there, and makes the same
    datastore. Exact repetitions are left out.

    Args:
        corpus: what to read, as `Corpus`.
        embedder: what makes the passages' vectors; None for search by words alone.
        embed: embeds groups of texts elsewhere; None for ``embedder.encode``.
        options: fields of `IndexConfig`, in place of ``config``.

    Raises:
        InputError: the corpus cannot be read, or has nothing to index.
        FileExistsError, ValueError: as from `check_output`; or an unfinished datastore has other
            texts or another embedder.
    """
    config = replace(config or IndexConfig(), **options)
    if not isinstance(corpus, Corpus):
        corpus = Corpus(corpus, config)
    check_output(path, inputs=[corpus.name])
    skipped: list[str] = []
    counts = Counter[str]()
    with new_folder(path, resume=True) as folder:
        passages = _passages(corpus.records(skipped), config, counts)
        count = write_texts(folder, passages)
        named = f" ({listed(skipped)})" if skipped else ""
        left_out = (
            f"{counted(counts['record'], 'record')} read, {len(skipped)} skipped{named}; "
            f"{counts['short']} short and {counts['repeated']} repeated passages left out"
        )
        if count == 0:
            raise InputError(f"{corpus.name}: nothing to index: {left_out}")
        source = f"{corpus.name}: {left_out}"
        complete(folder, embedder, source=source, embed=embed)
    return Datastore.open(path)


def _passages(
    records: Iterable[Record], config: IndexConfig, counts: Counter[str]
) -> Iterator[Record]:
    """The passages of the records, each text once; counts records and what is left out."""
    seen: set[bytes] = set()
    for record in records:
        counts["record"] += 1
        for text in split_passages(record["text"], config.passage_chars):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if len(text.strip()) < config.min_chars:
                counts["short"] += 1
            elif digest in seen:
                counts["repeated"] += 1
            else:
                seen.add(digest)
                yield {**record, "text": text}


def folder_datastore(
    corpus: str, embedder: Embedder | None, root: Path = DATASTORES, **options: Any
) -> Datastore:
    """The datastore of ``corpus`` with fields of `IndexConfig`, kept below ``root``.

    If the corpus has changed since the last call, a new one takes its place. Raises as
    `index_corpus`.
    """
    config = IndexConfig(**options)
    contents = Corpus(corpus, config)
    version = Info.model_fields["format"].default
    place = Path(corpus).resolve()
    encoder = embedder.name if embedder else None
    name = f"{place.name}-{_short_digest([str(place), encoder, options])}"
    path = root / f"{name}-{_short_digest([version, contents.state])}"
    if not path.exists():
        index_corpus(contents, path, embedder, config)
        for other in root.glob(f"{glob.escape(name)}-????????"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)
    return Datastore.open(path)


def _short_digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
