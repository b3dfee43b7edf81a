"""The files of a datastore, which is a folder, and how they are read and written.

    datastore.json   see `Info`
    source.json      see `Source`; absent if a program gave the texts
    skipped.txt      a line for each record or file without a text; absent as above
    texts.arrow      columns of strings: text, source and metadata; a stream of Arrow
    embeddings.f32   float32 [count, dim] in C order, row i embeds text i; absent without vectors
    words/           the index of the texts' words, as bm25s saves it: arrays of numpy, and JSON

All large files are mapped. The operators and FAISS read the embeddings as one matrix without a
copy; an Arrow column would be split at every record batch.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from hullft_ops._extras import needed_by
from hullft_ops._terminal import counted, listed
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.store.base import checked_vectors, identity_of
from hullft_ops.ttft.store.words import Words, digest_of
from hullft_ops.ttft.validation import Kind, parse

if TYPE_CHECKING:
    from tqdm import tqdm

INFO = "datastore.json"
SOURCE = "source.json"
SKIPPED = "skipped.txt"
TEXTS = "texts.arrow"
EMBEDDINGS = "embeddings.f32"
WORDS = "words"
FILES = (
    INFO,
    SOURCE,
    SKIPPED,
    TEXTS,
    EMBEDDINGS,
    f"{WORDS}/*.index.*",
    f"{SOURCE}.part",
)

# The size of a batch of texts on disk, which counts each row's own memory too. Opening a datastore
# reads where each batch begins.
_BATCH_CHARS, _ROW_CHARS = 1 << 24, 64

# A group's texts are embedded in batches of like length, because padding takes time: 29 s in place
# of 41 for 1,024 chunks of source files on two cores of an AMD EPYC. With batches of this size the
# progress bar moves every second on one core. A resumed write forms the same groups and batches,
# because the batch changes the last bits of a vector.
GROUP = 128
BATCH = 16

# Turns batches of texts into the vectors float32 [n, dim] of each batch, in their order.
Embed = Callable[[Iterable[list[str]]], Iterable[np.ndarray]]


class Source(BaseModel):
    """Where the texts come from, and what was left out.

    Attributes:
        settings: what was read, and how.
        records: how many records or files were read.
        short: passages with too few characters.
        repeated: passages that repeat another exactly.
        skipped: records without a text and files that cannot be read as text.
        skipped_named: the first of these, each with the reason.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    settings: dict[str, Any]
    records: int = 0
    short: int = 0
    repeated: int = 0
    skipped: int = 0
    skipped_named: list[str] = []

    def left_out(self) -> str:
        """What was left out, in words."""
        named = f" ({listed(self.skipped_named, self.skipped)})" if self.skipped else ""
        return (
            f"of {counted(self.records, 'record')} {self.short} passages are short and "
            f"{self.repeated} repeated; {self.skipped} skipped{named}"
        )


class Info(BaseModel):
    """The contents of ``datastore.json``.

    Attributes:
        format: of the datastore's files.
        embedder: the name of the embedder that made the embeddings; None if there are none.
        dim: length of an embedding; 0 likewise.
        count: how many texts there are.
        identity: SHA-256 over the rows and the embeddings.
        words: SHA-256 over the index of words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[5] = 5
    embedder: str | None
    dim: NonNegativeInt
    count: PositiveInt
    identity: str
    words: str


def read_model(model: type[Kind], file: Path) -> Kind:
    """The values in a JSON file. ValueError with one sentence if they are not the model's."""
    if not file.is_file():
        raise ValueError(f"{file.parent} is not a datastore: it has no {file.name}")
    return parse(model, file.read_bytes(), str(file))


class Rows(Sequence[Any]):
    """The rows of a datastore by position, as dictionaries or as the strings of one column.

    Each access reads from disk.

    Raises:
        ValueError: the file is damaged. Its batches and columns are checked when it is opened, a
            row when it is read.
    """

    def __init__(self, folder: Path, column: str | None = None) -> None:
        with needed_by("Datastore"):
            import pyarrow

        self._file = folder / TEXTS
        self._column = column
        if not self._file.is_file():
            raise ValueError(f"{folder} is not a datastore: it has no {TEXTS}")
        try:
            self._table = pyarrow.ipc.open_stream(
                pyarrow.memory_map(str(self._file))
            ).read_all()
        # Arrow does not document what it raises for foreign bytes.
        except Exception as error:
            raise ValueError(f"{self._file} is damaged: {error}") from error
        schema = self._table.schema
        types = set(schema.types)
        counts = [schema.names.count(name) for name in ("text", "source")]
        if counts != [1, 1] or types != {pyarrow.large_string()}:
            raise ValueError(
                f"{self._file} must have columns of strings, one is text, one source"
            )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            positions = range(len(self))[position]
            if positions.step != 1:
                return [self[i] for i in positions]
            return self._values(self._table.slice(positions.start, len(positions)))
        [row] = self._values(self._table.slice(range(len(self))[position], 1))
        return row

    def __iter__(self) -> Iterator[Any]:
        for batch in self._table.to_batches():
            yield from self._values(batch)

    def _values(self, rows: Any) -> list[Any]:
        """The values of a part of the table."""
        if self._column is not None:
            rows = rows.select([self._column])
        try:
            # Arrow trusts offsets, and one out of range would read outside of the file.
            rows.validate(full=True)
        except ValueError as error:
            raise ValueError(f"{self._file} is damaged: {error}") from error
        if "text" in rows.schema.names and rows.column("text").null_count:
            raise ValueError(f"{self._file} must have a text in each row")
        values: list[Any] = (
            rows.to_pylist() if self._column is None else rows.column(0).to_pylist()
        )
        return values


def open_matrix(folder: Path, count: int, dim: int) -> np.ndarray:
    """The embeddings float32 ``[count, dim]``, mapped. ValueError if the file has another size."""
    file = folder / EMBEDDINGS
    if not dim:
        return np.empty((count, 0), np.float32)
    size = file.stat().st_size if file.is_file() else 0
    if size != count * dim * 4:
        raise ValueError(
            f"{file} must have {count * dim * 4} bytes for {count} texts, has {size}"
        )
    # Copy on write: PyTorch has no read-only tensors, and the file must stay as it is.
    return np.memmap(file, np.float32, mode="c", shape=(count, dim))


def write_texts(
    folder: Path, rows: Iterable[Mapping[str, Any]], metadata: Sequence[str] = ()
) -> int:
    """Write the rows' texts, sources and metadata, all strings, and return how many there are."""
    with needed_by("Datastore"):
        import pyarrow

    names = dict.fromkeys(["text", "source", *metadata])
    schema = pyarrow.schema([(name, pyarrow.large_string()) for name in names])
    count = 0
    with (
        pyarrow.OSFile(str(folder / TEXTS), "wb") as file,
        pyarrow.ipc.new_stream(file, schema) as writer,
    ):
        for batch in _batches(rows):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch, chars = [], 0
    with progress_bar("writing texts") as bar:
        for row in rows:
            batch.append(row)
            chars += _ROW_CHARS + len(row["text"])
            bar.update()
            if chars >= _BATCH_CHARS:
                yield batch
                batch, chars = [], 0
    if batch:
        yield batch


def progress_bar(
    name: str,
    total: int | None = None,
    done: int = 0,
    over: Iterable[str] | None = None,
) -> "tqdm[Any]":
    """A bar of `datasets`, printed every second. A resumed one begins at ``done``."""
    from datasets.utils import tqdm

    return tqdm(
        over, desc=name, total=total, initial=done, unit=" texts", mininterval=1.0
    )


def embed_texts(folder: Path, embedder: Embedder, embed: Embed | None = None) -> None:
    """Append the vectors that are missing to the file of embeddings.

    A group of vectors that is in the file is never embedded again.
    """
    texts = Rows(folder, "text")
    row_bytes = embedder.dim * 4
    vectors_file = folder / EMBEDDINGS
    vectors_file.touch()
    done = vectors_file.stat().st_size // row_bytes
    if done < len(texts):
        done -= done % GROUP
    # A kill may leave a part of a group.
    os.truncate(vectors_file, done * row_bytes)
    with (
        vectors_file.open("ab") as file,
        progress_bar("embedding", len(texts), done) as bar,
    ):
        positions, to_embed = tee(_batches_to_embed(texts, done))
        batches = (batch for _, batch in to_embed)
        encoded = embed(batches) if embed else map(embedder.encode, batches)
        group = np.empty((GROUP, embedder.dim), np.float32)
        n_embedded = 0  # of the group, whose first text is number `done`
        for (batch, _), vectors in zip(positions, encoded, strict=True):
            group[np.array(batch) - done] = checked_vectors(
                f"the vectors of embedder {embedder.name}",
                vectors,
                count=len(batch),
                dim=embedder.dim,
            )
            n_embedded += len(batch)
            bar.update(len(batch))
            if n_embedded == min(GROUP, len(texts) - done):
                file.write(group[:n_embedded].tobytes())
                file.flush()
                done += n_embedded
                n_embedded = 0


def _batches_to_embed(
    texts: Sequence[str], first: int
) -> Iterator[tuple[list[int], list[str]]]:
    """The positions and texts of each batch, from text ``first`` on."""
    for start in range(first, len(texts), GROUP):
        group = texts[start : start + GROUP]
        for batch in batches_of_like_length(group, 0, BATCH):
            yield [start + i for i in batch], [group[i] for i in batch]


def batches_of_like_length(
    texts: Sequence[str], first: int, size: int
) -> Iterator[list[int]]:
    """The positions of the texts from ``first`` on, group by group, the short ones first."""
    for start in range(first, len(texts), GROUP):
        lengths = [len(text) for text in texts[start : start + GROUP]]
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        for i in range(0, len(by_length), size):
            yield [start + position for position in by_length[i : i + size]]


def finish(folder: Path, embedder: Embedder | None) -> None:
    """Index the words, and write what tells a datastore from a folder with texts and vectors."""
    texts = Rows(folder, "text")
    bar = progress_bar("indexing words", len(texts), over=texts)
    Words.build(bar).save(folder / WORDS)
    dim = embedder.dim if embedder else 0
    info = Info(
        embedder=embedder.name if embedder else None,
        dim=dim,
        count=len(texts),
        identity=identity_of(Rows(folder), open_matrix(folder, len(texts), dim)),
        words=digest_of(folder / WORDS),
    )
    (folder / INFO).write_text(info.model_dump_json(indent=1), encoding="utf-8")
