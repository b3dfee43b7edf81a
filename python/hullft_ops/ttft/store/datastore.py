"""A datastore: a folder with texts and their embeddings, and how it is written, read and searched.

    datastore.json   see `Info`
    texts.arrow      columns of strings, text and source; a stream of Arrow
    embeddings.f32   float32 [count, dim] in C order, row i embeds text i; absent without vectors
    embedded.txt     what an interrupted run has embedded: the embedder, and a digest of the texts
    words/           the index of the texts' words, as bm25s saves it: arrays of numpy, and JSON

All large files are mapped. The operators and FAISS read the embeddings as one matrix without a
copy; an Arrow column would be split at every record batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from hullft_ops._checks import check_text
from hullft_ops._extras import needed_by
from hullft_ops._terminal import counted, progress
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.errors import input_errors
from hullft_ops.ttft.files import digest_of, new_folder
from hullft_ops.ttft.store.base import Matrix, checked_vectors, identity_of
from hullft_ops.ttft.store.words import Words
from hullft_ops.ttft.validation import parse

INFO = "datastore.json"
TEXTS = "texts.arrow"
EMBEDDINGS = "embeddings.f32"
WORDS = "words"
_EMBEDDED = "embedded.txt"

# So many texts are embedded at a time. A resumed write forms the same groups, because the texts
# beside it change the last bits of a vector.
GROUP = 128

# Turns groups of texts into the vectors float32 [n, dim] of each group, in their order.
Embed = Callable[[Iterable[list[str]]], Iterable[np.ndarray]]


class Info(BaseModel):
    """The contents of ``datastore.json``.

    Attributes:
        format: of the datastore's files.
        embedder: the name of the embedder that made the embeddings; None if there are none.
        dim: length of an embedding; 0 likewise.
        identity: SHA-256 over the texts, their sources and the embeddings.
        words: SHA-256 over the index of words.
        source: where the texts come from, and what was left out, in words; None if a program gave
            them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[7] = 7
    embedder: str | None
    dim: NonNegativeInt
    identity: str
    words: str
    source: str | None


class Column(Sequence[Any]):
    """A column of a datastore's rows by position; each access reads from disk."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return self._values[position].to_pylist()
        return self._values[position].as_py()


class Datastore(Matrix):
    """A `Store` in a folder; see `hullft_ops.ttft.store.datastore`. `build` or `open` makes one.

    Attributes:
        folder: where its files are.
        info: its embedder and identity.
        texts: by position; each access reads one from disk.
        sources: likewise, the document of each text, or None.
        embeddings: mapped from disk without a copy. Writing to them changes this process's view,
            never the file.
        words: the index of the texts' words, mapped likewise.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / INFO
        if not file.is_file():
            raise ValueError(f"{folder} is not a datastore: it has no {INFO}")
        self.info = info = parse(Info, file.read_bytes(), str(file))
        self.embedder = info.embedder
        self.dim = info.dim
        self.identity = info.identity
        self.texts: Sequence[str]
        self.sources: Sequence[str | None]
        self.texts, self.sources = open_texts(folder)
        matrix = open_matrix(folder, len(self.texts), info.dim)
        self.embeddings = torch.from_numpy(matrix)
        self.words = Words.open(folder / WORDS, len(self.texts))

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        embedder: Embedder | None,
        path: str | Path,
        *,
        sources: Sequence[str] | None = None,
        resume: bool = False,
    ) -> "Datastore":
        """Write a datastore and open it. Only a batch of texts is in memory.

        The folder appears whole: an exception or a kill leaves ``path`` as it was.

        Args:
            texts: in the order of their positions; an empty text is a text.
            embedder: what makes their vectors; None for search by words alone.
            path: the folder to create, with missing parents.
            sources: the document of each text; texts in a row that share it follow one another.
            resume: keep the embeddings for the next call if this one is interrupted.

        Raises:
            TypeError, ValueError: there are no texts, a text is not a valid str, or the embedder
                returns anything but unit vectors.
            FileExistsError: as from `check_output`.
        """
        if isinstance(texts, str):
            raise TypeError(
                "Datastore.build: texts must be an iterable of str, got one str"
            )
        with new_folder(path, resume=resume) as folder:
            count = write_texts(folder, _rows(texts, sources))
            if not count:
                raise ValueError("Datastore.build: texts is empty, need at least 1")
            if sources is not None and len(sources) != count:
                raise ValueError(
                    f"Datastore.build: sources must have one for each of {count} texts, has "
                    f"{len(sources)}"
                )
            complete(folder, embedder)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "Datastore":
        """Open the datastore in the folder. Maps its files and runs nothing from them.

        Checks that texts and words can be read without leaving the files; `verify` compares
        everything with what was written.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is not a datastore, or a file is missing or damaged.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"Datastore.open: {path}: no such folder")
        return cls(folder)

    def verify(self) -> None:
        """Read every text, source and vector and the index of words once. ValueError if one has
        changed since it was written."""
        identity = identity_of(self.texts, self.sources, self.embeddings.numpy())
        words = digest_of(*sorted((self.folder / WORDS).glob("*")))
        if (identity, words) != (self.identity, self.info.words):
            raise ValueError(f"{self.folder} is damaged: its files have changed")

    def following(self, position: int) -> int | None:
        """The next position, if its text has the same source; else None."""
        sources = self.sources[position : position + 2]
        is_followed = len(sources) == 2 and None is not sources[0] == sources[1]
        return position + 1 if is_followed else None

    def summary(self) -> list[str]:
        """Lines that describe the datastore."""
        info = self.info
        vectors = f"{info.embedder} of dim {info.dim}" if info.dim else "no vectors"
        line = f"{counted(len(self), 'passage')}, {vectors}"
        return [line] if info.source is None else [line, info.source]


def _rows(
    texts: Iterable[str], sources: Sequence[str] | None
) -> Iterator[dict[str, str | None]]:
    for position, text in enumerate(texts):
        check_text("Datastore.build", f"texts[{position}]", text)
        source = sources[position] if sources and position < len(sources) else None
        yield {"text": text, "source": source}


def open_texts(folder: Path) -> tuple[Column, Column]:
    """The texts and their sources. ValueError if the file is damaged or lacks one."""
    file = str(folder / TEXTS)
    with input_errors(file):
        table = pyarrow.ipc.open_stream(pyarrow.memory_map(file)).read_all()
        # An offset that leads out of the file would end the process.
        table.validate(full=True)
        return Column(table["text"]), Column(table["source"])


def open_matrix(folder: Path, count: int, dim: int) -> np.ndarray:
    """The embeddings float32 ``[count, dim]``, mapped. ValueError if the file is too small."""
    if not dim:
        return np.empty((count, 0), np.float32)
    file = folder / EMBEDDINGS
    with input_errors(str(file)):
        # Copy on write: PyTorch has no read-only tensors, and the file must stay as it is.
        return np.memmap(file, np.float32, mode="c", shape=(count, dim))


def write_texts(folder: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows of a "text" and its "source", and return how many there are. Only a batch of them
    is in memory."""
    with needed_by("Datastore"):
        from datasets import Features, Value
        from datasets.arrow_writer import ArrowWriter

    file = folder / TEXTS
    column = Value("large_string")
    features = Features({"text": column, "source": column})
    with ArrowWriter(path=str(file), features=features) as writer:
        for row in progress(rows, desc="writing texts", unit=" texts"):
            writer.write(row)
        count: int = writer.finalize()[0]
    if count == 0:
        file.unlink()
    return count


def complete(
    folder: Path,
    embedder: Embedder | None,
    *,
    source: str | None = None,
    embed: Embed | None = None,
) -> None:
    """Make a datastore of a folder with texts: add vectors, the index of words, and `Info`.

    Args:
        folder: what `write_texts` has filled; vectors of an interrupted call stay.
        embedder: what makes the texts' vectors; None for none.
        source: as in `Info`.
        embed: in place of ``embedder.encode``.

    Raises:
        ValueError: the vectors of an interrupted call are of other texts or of another embedder.
    """
    texts, sources = open_texts(folder)
    dim = 0
    if embedder is not None:
        dim = embedder.dim
        _check_embedded(folder, embedder)
        _embed_texts(folder, texts, embedder, embed)
    count = len(texts)
    indexed = progress(texts, desc="indexing words", total=count, unit=" texts")
    Words.build(indexed).save(folder / WORDS)
    info = Info(
        embedder=embedder.name if embedder else None,
        dim=dim,
        identity=identity_of(texts, sources, open_matrix(folder, count, dim)),
        words=digest_of(*sorted((folder / WORDS).glob("*"))),
        source=source,
    )
    (folder / INFO).write_text(info.model_dump_json(indent=1), encoding="utf-8")


def _check_embedded(folder: Path, embedder: Embedder) -> None:
    digest = digest_of(folder / TEXTS)
    content = f"{embedder.name} of dim {embedder.dim}, texts {digest}"
    record = folder / _EMBEDDED
    if not (folder / EMBEDDINGS).exists():
        record.write_text(content, encoding="utf-8")
    elif record.read_text(encoding="utf-8") != content:
        raise ValueError(
            f"{folder} has vectors of an interrupted run with other texts or another embedder: "
            "remove it to begin anew"
        )


def _embed_texts(
    folder: Path, texts: Column, embedder: Embedder, embed: Embed | None
) -> None:
    """Append the vectors that are missing to the file of embeddings.

    A group of vectors that is in the file is never embedded again.
    """
    dim = embedder.dim
    with (folder / EMBEDDINGS).open("ab") as file:
        done = file.tell() // (4 * dim)
        if done < len(texts):
            done -= done % GROUP
        # A kill may leave a part of a group.
        file.truncate(4 * dim * done)
        starts = range(done, len(texts), GROUP)
        groups = (texts[start : start + GROUP] for start in starts)
        encoded = embed(groups) if embed else map(embedder.encode, groups)
        pairs = progress(
            zip(starts, encoded, strict=True),
            desc="embedding",
            total=len(range(0, len(texts), GROUP)),
            initial=done // GROUP,
            unit=" texts",
            unit_scale=GROUP,
        )
        for start, vectors in pairs:
            rows = checked_vectors(
                f"the vectors of embedder {embedder.name}",
                vectors,
                count=min(GROUP, len(texts) - start),
                dim=dim,
            )
            file.write(rows.tobytes())
            file.flush()
