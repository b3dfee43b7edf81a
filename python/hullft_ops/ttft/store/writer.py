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
from typing import Any
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

_ROWS_PER_WRITE = 1024
# Enough for an embedder to sort by length, few enough for the progress bar to move. A resumed
# write forms the same batches, because the batch changes the last bits of a vector.
_TEXTS_PER_ENCODE = 128
# A commit waits for the disk, which a cheap embedder should not do at every batch.
_SECONDS_PER_COMMIT = 2.0
_SCALARS = (
    pa.types.is_string,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
)
NOT_OF_TYPE = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)


@dataclass
class StoreWriter:
    """A write into ``directory``, which exists and which the caller has locked."""

    directory: Path
    folder: Path  # of the data, in ``directory``
    embedder: Embedder
    base: Manifest  # the datastore as its readers see it, at first without texts
    journal: Journal
    function: str  # the first word of an error

    @classmethod
    def begin(
        cls,
        directory: Path,
        embedder: Embedder,
        settings: dict[str, Any],
        function: str,
        interrupted: Journal | None = None,
    ) -> "StoreWriter":
        """A new write, which rolls an interrupted one back, or the ``interrupted`` one."""
        check_is_embedder(function, embedder)
        dim = check_integer(function, "embedder.dim", embedder.dim, 1)
        if (directory / MANIFEST_FILE).exists():
            base = Manifest.read(directory)
        else:
            data = interrupted.data if interrupted else f"data-{uuid4().hex}"
            base = Manifest(
                embedder.name, dim, 0, data, (), DataFile(EMBEDDINGS_FILE, 0, 0, 0)
            )
        journal = interrupted or Journal(
            base.embedder, base.dim, base.data, settings, base.embeddings.crc32
        )
        if base.data != journal.data:
            raise ValueError(
                f"{function}: the interrupted write in {directory} is into {journal.data}, the "
                f"datastore is in {base.data} by now: restart rolls it back and begins anew"
            )
        check_embedder(function, embedder, journal)
        folder = directory / base.data
        refuse_link(folder)
        writer = cls(directory, folder, embedder, base, journal, function)
        writer._record()
        if journal.shard is None:
            remove_all_but(directory, base)
        folder.mkdir(exist_ok=True)
        return writer

    def write_texts(
        self, rows: Iterable[Mapping[str, Any]], report: Callable[[], dict[str, Any]]
    ) -> DataFile | None:
        """Write texts as a shard, then the ``report`` on them; None if there are no texts."""
        file = self.folder / f"texts-{len(self.base.shards):05}.arrow"
        refuse_link(file)
        known = None
        if self.base.shards:
            with pa.ipc.open_stream(
                str(self.folder / self.base.shards[0].file)
            ) as earlier:
                known = earlier.schema
        count = _write_rows(self.function, rows, file, known)
        if not count:
            return None
        shard = DataFile.written(file, count)
        self._record(shard=shard, source=report())
        return shard

    def finish(
        self,
        shard: DataFile,
        bar: Progress,
        thresholds: IndexThresholds,
        encode: EncodeBatches | None = None,
    ) -> None:
        """Embed the shard's texts, build the index, and make readers see them."""
        # A kill may have struck between writing the manifest and removing the journal.
        if shard not in self.base.shards:
            self._embed(shard, bar, encode)
            vectors = self._vectors
            self.base = replace(
                self.base,
                count=vectors.count,
                shards=(*self.base.shards, shard),
                embeddings=vectors,
                sources=(*self.base.sources, self.journal.source or {}),
                index=build_index(self.folder, vectors, self.base.dim, thresholds),
            )
            self.base.write(self.directory)
        self.abandon()
        sync(self.directory)

    def abandon(self) -> None:
        """Remove the journal, and the files that no reader sees."""
        remove_all_but(self.directory, self.base)
        (self.directory / JOURNAL_FILE).unlink()

    def _embed(
        self, shard: DataFile, bar: Progress, encode: EncodeBatches | None
    ) -> None:
        """Write the missing vectors."""
        # Indexing and searching need FAISS. Hours of embedding come first, so check it now.
        with needed_by(self.function):
            import datasets
            import faiss  # noqa: F401
        check_file(self.folder, shard)
        texts = datasets.Dataset.from_file(str(self.folder / shard.file))["text"]
        vectors, file = self._vectors, self.folder / EMBEDDINGS_FILE
        refuse_link(file)
        done, crc32 = self.journal.embedded, vectors.crc32
        task = bar.add_task("embedding", total=len(texts), completed=done)
        starts = range(done, len(texts), _TEXTS_PER_ENCODE)
        batches = (list(texts[start : start + _TEXTS_PER_ENCODE]) for start in starts)
        own = (encode_checked(self.function, self.embedder, batch) for batch in batches)
        with (
            file.open("ab") as out,
            closing(encode(batches) if encode else own) as encoded,
        ):
            check_file(self.folder, vectors, longer=True)
            # An interrupted write leaves vectors that its journal does not count.
            out.truncate(vectors.bytes)
            committed = time.monotonic()
            for block in encoded:
                content = block.tobytes()
                out.write(content)
                crc32 = zlib.crc32(content, crc32)
                done += len(block)
                if (
                    done == len(texts)
                    or time.monotonic() - committed > _SECONDS_PER_COMMIT
                ):
                    out.flush()
                    os.fsync(out.fileno())
                    self._record(embedded=done, embeddings_crc32=crc32)
                    bar.update(task, completed=done)
                    committed = time.monotonic()

    @property
    def _vectors(self) -> DataFile:
        """The vectors that the journal counts, with those before this write."""
        count = self.base.count + self.journal.embedded
        size = count * self.base.dim * 4
        return DataFile(EMBEDDINGS_FILE, count, size, self.journal.embeddings_crc32)

    def _record(self, **changes: Any) -> None:
        self.journal = replace(self.journal, **changes)
        self.journal.write(self.directory)


def locked(directory: Path, what: str = "datastore") -> AbstractContextManager[None]:
    """Keep other writers out of ``directory``; ValueError if one is at work."""
    return alone_in(directory, f"another process is writing the {what} {directory}")


def _write_rows(
    function: str,
    rows: Iterable[Mapping[str, Any]],
    file: Path,
    known: pa.Schema | None,
) -> int:
    rows, count = iter(rows), 0
    batches = iter(lambda: list(islice(rows, _ROWS_PER_WRITE)), [])
    first = next(batches, None)
    if first is None:
        return 0
    schema = known or _inferred(function, first)
    if set(schema.names) != set(first[0]):
        have, got = ", ".join(schema.names), ", ".join(first[0])
        raise ValueError(f"{function}: the datastore has the columns {have}, got {got}")
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


def _inferred(function: str, rows: list[Mapping[str, Any]]) -> pa.Schema:
    """A string "text" and the other columns, with the types of the first rows."""
    found = [pa.field("text", pa.string())]
    for name in (name for name in rows[0] if name != "text"):
        try:
            kind = pa.array([row.get(name) for row in rows]).type
        except NOT_OF_TYPE as error:
            fault = (
                "is out of range" if isinstance(error, OverflowError) else "mixes types"
            )
            raise ValueError(f"{function}: metadata {name} {fault}: {error}") from error
        if pa.types.is_null(kind):
            kind = pa.string()
        if not any(is_kind(kind) for is_kind in _SCALARS):
            wanted = "strings, numbers or booleans"
            raise ValueError(
                f"{function}: metadata {name} must be {wanted}, got {kind}"
            )
        found.append(pa.field(name, kind))
    return pa.schema(found)
