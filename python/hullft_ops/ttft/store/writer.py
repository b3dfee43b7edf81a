"""Writing a datastore's files, with only a batch of texts in memory.

A write adds one shard: its texts as one Arrow file, then their vectors at the end of the file of
vectors. Until the manifest names both, readers see the datastore as it was.
"""

import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import pyarrow as pa
from rich.progress import Progress

from hullft_ops._checks import check_integer, check_text
from hullft_ops._extras import needed_by
from hullft_ops.ttft._files import alone_in, sync
from hullft_ops.ttft.store.embedding import (
    Embedder,
    EncodeBatches,
    check_embedder,
    check_is_embedder,
    encode_checked,
)
from hullft_ops.ttft.store.format import (
    EMBEDDINGS_FILE,
    JOURNAL_FILE,
    MANIFEST_FILE,
    DataFile,
    Journal,
    Manifest,
    check_file,
    refuse_link,
    remove_all_but,
)
from hullft_ops.ttft.store.search import IndexThresholds, build_index

Row = Mapping[str, str | int | float | bool | None]

_ROWS_PER_WRITE = 1024
# Enough for an embedder to sort by length, few enough for the progress bar to move. A resumed
# write forms the same batches, because the batch changes the last bits of a vector.
_TEXTS_PER_ENCODE = 128
# A commit waits for the disk, which a cheap embedder should not do at every batch.
_SECONDS_PER_COMMIT = 2.0
_SCALARS = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
NOT_OF_TYPE = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)


@dataclass
class StoreWriter:
    """A write into ``directory``, which exists and which the caller has locked."""

    directory: Path
    embedder: Embedder
    base: Manifest  # the datastore as its readers see it, at first without texts
    journal: Journal
    function: str  # the first word of an error

    def __post_init__(self) -> None:
        check_embedder(self.function, self.embedder, self.base)
        refuse_link(self._folder)

    @classmethod
    def begin(
        cls,
        directory: Path,
        embedder: Embedder,
        settings: dict[str, Any],
        function: str,
        interrupted: Journal | None = None,
    ) -> "StoreWriter":
        """A new write, which rolls an interrupted one back, or the ``interrupted`` one.

        ValueError if that had other settings, or the datastore has been replaced since.
        """
        check_is_embedder(function, embedder)
        dim = check_integer(function, "embedder.dim", embedder.dim, 1)
        journal = interrupted or Journal(embedder.name, dim, f"data-{uuid4().hex}", settings, 0)
        names = sorted(journal.settings.keys() | settings.keys())
        pairs = [(name, journal.settings.get(name), settings.get(name)) for name in names]
        changed = [f"{name} was {was!r}, is {now!r}" for name, was, now in pairs if was != now]
        if changed:
            raise ValueError(
                f"{function}: the interrupted write in {directory} has other settings: "
                + ", ".join(changed)
            )
        if (directory / MANIFEST_FILE).exists():
            base = Manifest.read(directory)
        else:
            none = DataFile(EMBEDDINGS_FILE, 0, 0, 0)
            base = Manifest(journal.embedder, journal.dim, 0, journal.data, (), none)
        if interrupted is None:
            journal = Journal(base.embedder, base.dim, base.data, settings, base.embeddings.crc32)
        elif base.data != journal.data:
            raise ValueError(
                f"{function}: the interrupted write in {directory} is into {journal.data}, the "
                f"datastore is in {base.data} by now: restart rolls it back and begins anew"
            )
        writer = cls(directory, embedder, base, journal, function)
        journal.write(directory)
        if journal.shard is None:
            writer._tidy()
        writer._folder.mkdir(exist_ok=True)
        return writer

    @property
    def _folder(self) -> Path:
        return self.directory / self.journal.data

    @property
    def finished(self) -> bool:
        """Whether a kill struck between writing the manifest and removing the journal."""
        return self.journal.shard in self.base.shards

    def write_texts(self, rows: Iterable[Row], report: Callable[[], dict[str, Any]]) -> bool:
        """Write the shard's texts, and return whether there are any.

        Each row has a "text" and the same other columns, whose values are scalars. After the last,
        ``report`` returns the manifest's entry on the source.
        """
        file = self._folder / f"texts-{len(self.base.shards):05}.arrow"
        refuse_link(file)
        known = None
        if self.base.shards:
            with pa.ipc.open_stream(str(self._folder / self.base.shards[0].file)) as earlier:
                known = earlier.schema
        count = _write_rows(self.function, rows, file, known)
        if count:
            shard = DataFile.written(file, count)
            self.journal = replace(self.journal, shard=shard, source=report())
            self.journal.write(self.directory)
        return count > 0

    def embed(self, bar: Progress, encode: EncodeBatches | None = None) -> None:
        """Write the missing vectors. Whatever ``bar`` counts is on the disk."""
        # Indexing and searching need FAISS. Hours of embedding come first, so check it now.
        with needed_by(self.function):
            import datasets
            import faiss  # noqa: F401
        shard = self._shard
        check_file(self.function, self._folder, shard)
        texts = datasets.Dataset.from_file(str(self._folder / shard.file))["text"]
        done = self.journal.embedded
        task = bar.add_task("embedding", total=len(texts), completed=done)
        starts = range(done, len(texts), _TEXTS_PER_ENCODE)
        batches = (list(texts[start : start + _TEXTS_PER_ENCODE]) for start in starts)
        own = (encode_checked(self.function, self.embedder, batch) for batch in batches)
        with self._open_vectors() as out, closing(encode(batches) if encode else own) as encoded:
            crc32, committed = self.journal.embeddings_crc32, time.monotonic()
            for vectors in encoded:
                block = vectors.tobytes()
                out.write(block)
                crc32 = zlib.crc32(block, crc32)
                done += len(vectors)
                if done == len(texts) or time.monotonic() - committed > _SECONDS_PER_COMMIT:
                    out.flush()
                    os.fsync(out.fileno())
                    self.journal = replace(self.journal, embedded=done, embeddings_crc32=crc32)
                    self.journal.write(self.directory)
                    bar.update(task, completed=done)
                    committed = time.monotonic()

    def finish(self, thresholds: IndexThresholds) -> None:
        """Build the index, and make readers see the new texts."""
        if not self.finished:
            vectors = self._vectors(self._shard.count)
            check_file(self.function, self._folder, vectors, checksum=False)
            self.base = replace(
                self.base,
                count=vectors.count,
                shards=(*self.base.shards, self._shard),
                embeddings=vectors,
                sources=(*self.base.sources, self.journal.source or {}),
                index=build_index(self._folder, vectors, self.base.dim, thresholds),
            )
            self.base.write(self.directory)
        self.abandon()
        sync(self.directory)

    def abandon(self) -> None:
        """Remove the journal, and the files that no reader sees."""
        self._tidy()
        (self.directory / JOURNAL_FILE).unlink()

    @property
    def _shard(self) -> DataFile:
        if self.journal.shard is None:
            raise ValueError(f"{self.function}: no texts have been written into {self.directory}")
        return self.journal.shard

    def _vectors(self, new: int) -> DataFile:
        """The file of vectors with ``new`` of this write."""
        count = self.base.count + new
        size = count * self.base.dim * 4
        return DataFile(EMBEDDINGS_FILE, count, size, self.journal.embeddings_crc32)

    def _open_vectors(self) -> BinaryIO:
        """The file of vectors, cut to the committed part, checked, and positioned at its end."""
        known = self._vectors(self.journal.embedded)
        self._cut(known.bytes)
        file = self._folder / EMBEDDINGS_FILE
        file.touch()
        check_file(self.function, self._folder, known)
        return file.open("ab")

    def _cut(self, size: int) -> None:
        file = self._folder / EMBEDDINGS_FILE
        refuse_link(file)
        if file.exists() and file.stat().st_size > size:
            os.truncate(file, size)

    def _tidy(self) -> None:
        """Remove what interrupted or replaced states left behind."""
        remove_all_but(self.directory, self.base if self.base.count else None)
        self._cut(self.base.embeddings.bytes)


def locked(directory: Path, what: str = "datastore") -> AbstractContextManager[None]:
    """Keep other writers out of ``directory``; ValueError if one is at work."""
    return alone_in(directory, f"another process is writing the {what} {directory}")


def _write_rows(function: str, rows: Iterable[Row], file: Path, known: pa.Schema | None) -> int:
    rows, count = iter(rows), 0
    batches = iter(lambda: list(islice(rows, _ROWS_PER_WRITE)), [])
    first = next(batches, None)
    if first is None:
        return 0
    schema = known or _inferred(function, first)
    if set(schema.names) != set(first[0]):
        raise ValueError(
            f"{function}: the datastore has the columns {', '.join(schema.names)}, "
            f"got {', '.join(first[0])}"
        )
    with pa.ipc.new_stream(str(file), schema) as writer:
        for batch in chain([first], batches):
            for position, row in enumerate(batch, count):
                check_text(function, f"texts[{position}]", row["text"])
            columns = []
            for name, kind in zip(schema.names, schema.types, strict=True):
                try:
                    columns.append(array_of(kind, [row.get(name) for row in batch]))
                except NOT_OF_TYPE as error:
                    raise ValueError(
                        f"{function}: in rows {count} to {count + len(batch) - 1}, a value of the "
                        f"metadata {name} is not {kind} like the others: {error}"
                    ) from error
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            count += len(batch)
    return count


def array_of(kind: pa.DataType, values: list[Any]) -> pa.Array:
    """The values as an array; one of `NOT_OF_TYPE` if a value is not of that type."""
    for value in values if pa.types.is_integer(kind) else ():
        # Arrow would round it towards 0.
        if isinstance(value, float) and not value.is_integer():
            raise pa.ArrowInvalid(f"{value!r} is no integer")
    return pa.array(values, type=kind)


def _inferred(function: str, rows: list[Row]) -> pa.Schema:
    """A string "text" and the other columns, with the types of the first rows."""
    found = [pa.field("text", pa.string())]
    for name in (name for name in rows[0] if name != "text"):
        try:
            kind = pa.array([row.get(name) for row in rows]).type
        except NOT_OF_TYPE as error:
            fault = "is out of range" if isinstance(error, OverflowError) else "mixes types"
            raise ValueError(f"{function}: metadata {name} {fault}: {error}") from error
        if pa.types.is_null(kind):
            kind = pa.string()
        if not any(is_kind(kind) for is_kind in _SCALARS):
            raise ValueError(
                f"{function}: metadata {name} must be strings, numbers or booleans, got {kind}"
            )
        found.append(pa.field(name, kind))
    return pa.schema(found)
