"""The files of a datastore, which is a folder, and how they are read and written.

    datastore.json   see `Info`
    source.json      see `Source`; absent if a program gave the texts
    texts.arrow      texts, their sources and metadata, which `datasets` memory-maps
    embeddings.f32   float32 [count, dim] in C order, row i embeds text i
    lists.faiss      inverted lists, if the datastore is large

The operators and FAISS read the embeddings as one matrix without a copy. An Arrow column would be
split at every record batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveInt

from hullft_ops._extras import needed_by
from hullft_ops._terminal import counted, listed
from hullft_ops.ttft.embedding import Embedder, checked_vectors
from hullft_ops.ttft.files import replacing
from hullft_ops.ttft.store.base import identity_of
from hullft_ops.ttft.store.search import build_lists, sha256_of
from hullft_ops.ttft.validation import Kind, parse

if TYPE_CHECKING:
    import datasets
    from tqdm import tqdm

INFO = "datastore.json"
SOURCE = "source.json"
TEXTS = "texts.arrow"
EMBEDDINGS = "embeddings.f32"
LISTS = "lists.faiss"

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

    settings: dict[str, Any] = {}
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
        embedder: the name of the embedder that made the embeddings.
        dim: length of an embedding.
        count: how many texts there are.
        identity: SHA-256 over the texts and the embeddings.
        recall: the share of the 200 nearest that a search by lists finds; None for exact search.
        lists_sha256: of the file of lists; None for exact search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[2] = 2
    embedder: str
    dim: PositiveInt
    count: PositiveInt
    identity: str
    recall: float | None = None
    lists_sha256: str | None = None


def read_model(model: type[Kind], file: Path) -> Kind:
    """The values in a JSON file. ValueError with one sentence if they are not the model's."""
    if not file.is_file():
        raise ValueError(f"{file.parent} is not a datastore: it has no {file.name}")
    return parse(model, file.read_bytes(), str(file))


def open_rows(folder: Path) -> "datasets.Dataset":
    """The texts, their sources and metadata, mapped. ValueError if the file is damaged."""
    with needed_by("Datastore"):
        import datasets

    file = folder / TEXTS
    try:
        rows = datasets.Dataset.from_file(str(file))
        # Arrow trusts the offsets in a file: one out of range would read outside of it.
        rows.data.table.validate(full=True)
    # The libraries do not document what they raise for foreign bytes.
    except Exception as error:
        raise ValueError(f"{file} is missing or damaged: {error}") from error
    for name, feature in rows.features.items():
        if not isinstance(feature, datasets.Value):
            raise ValueError(
                f"{file}: {name} must be strings, numbers or booleans, got {feature}"
            )
    if rows.features.get("text") != datasets.Value("string"):
        raise ValueError(f"{file} must have a column text of strings")
    if rows.data.column("text").null_count:
        raise ValueError(f"{file} must have a text in each row")
    return rows


def texts_of(rows: "datasets.Dataset") -> Iterator[str]:
    """The texts by position, read in large blocks."""
    for chunk in rows.data.column("text").chunks:
        yield from chunk.to_pylist()


def open_matrix(folder: Path, count: int, dim: int) -> np.ndarray:
    """The embeddings float32 ``[count, dim]``, mapped. ValueError if the file has another size."""
    file = folder / EMBEDDINGS
    size = file.stat().st_size if file.is_file() else 0
    if size != count * dim * 4:
        raise ValueError(
            f"{file} must have {count * dim * 4} bytes for {count} texts, has {size}"
        )
    # Copy on write: PyTorch has no read-only tensors, and the file must stay as it is.
    return np.memmap(file, np.float32, mode="c", shape=(count, dim))


def write_texts(folder: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write the rows' texts and metadata, and return how many there are."""
    with needed_by("Datastore"):
        from datasets.arrow_writer import ArrowWriter

    count = 0
    with replacing(folder / TEXTS) as file, ArrowWriter(path=str(file)) as writer:
        with progress_bar("writing texts") as bar:
            for row in rows:
                writer.write(row)
                count += 1
                bar.update()
        if count:
            writer.finalize()
    return count


def progress_bar(name: str, total: int | None = None) -> "tqdm[Any]":
    """A bar of `datasets`, printed every second."""
    from datasets.utils import tqdm

    return tqdm(desc=name, total=total, unit=" texts", mininterval=1.0)


def embed_texts(folder: Path, embedder: Embedder, embed: Embed | None = None) -> None:
    """Append the vectors that are missing to the file of embeddings.

    A group of vectors that is in the file is never embedded again.
    """
    texts = open_rows(folder)["text"]
    row_bytes = embedder.dim * 4
    with (
        (folder / EMBEDDINGS).open("ab") as file,
        progress_bar("embedding", total=len(texts)) as bar,
    ):
        done = file.tell() // row_bytes
        if done < len(texts):
            done -= done % GROUP
        # A kill may leave a part of a group.
        file.truncate(done * row_bytes)
        bar.update(done)
        positions, to_embed = tee(_batches_of_like_length(texts, done))
        batches = (list(texts[batch]) for batch in to_embed)
        encoded = embed(batches) if embed else map(embedder.encode, batches)
        group = np.empty((GROUP, embedder.dim), np.float32)
        n_embedded = 0  # of the group, whose first text is number `done`
        for batch, vectors in zip(positions, encoded, strict=True):
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


def _batches_of_like_length(texts: Sequence[str], first: int) -> Iterator[list[int]]:
    """The positions of the texts from ``first`` on, group by group, the short ones first."""
    for start in range(first, len(texts), GROUP):
        lengths = [len(text) for text in texts[start : start + GROUP]]
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        for i in range(0, len(by_length), BATCH):
            yield [start + position for position in by_length[i : i + BATCH]]


def finish(folder: Path, embedder: Embedder, *, exact_up_to: int) -> None:
    """Write what tells a datastore from a folder with texts and vectors."""
    rows = open_rows(folder)
    matrix = open_matrix(folder, len(rows), embedder.dim)
    recall = sha256 = None
    if len(rows) > exact_up_to:
        recall = build_lists(matrix, folder / LISTS)
        sha256 = sha256_of(folder / LISTS)
    info = Info(
        embedder=embedder.name,
        dim=embedder.dim,
        count=len(rows),
        identity=identity_of(texts_of(rows), matrix),
        recall=recall,
        lists_sha256=sha256,
    )
    (folder / INFO).write_text(info.model_dump_json(indent=1), encoding="utf-8")
