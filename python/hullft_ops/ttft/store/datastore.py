"""A datastore: a folder with texts, and with their embeddings; see `hullft_ops.ttft.store.version`
for what is in it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from hullft_ops._checks import check_text
from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.files import locked, named_in_errors, new_folder
from hullft_ops.ttft.store.base import Matrix, check_embedder
from hullft_ops.ttft.store.version import (
    Column,
    Settings,
    by_position,
    open_version,
    read_info,
)
from hullft_ops.ttft.store.words import Words
from hullft_ops.ttft.store.writer import Writer
from hullft_ops.ttft.terminal import counted

_TEXT = "SELECT text FROM positions JOIN texts USING (id) WHERE position = ?"
_SOURCE = "SELECT source FROM positions JOIN documents USING (place) WHERE position = ?"
_FOLLOWING = (
    "SELECT other.position FROM positions AS this JOIN documents USING (place) "
    "JOIN positions AS other ON other.position = this.position + 1 AND other.place = this.place "
    "WHERE this.position = ? AND source IS NOT NULL"
)


class Datastore(Matrix):
    """A `Store` in a folder. `build`, `index_corpus` or `open` makes one.

    It stays at the version that it has read, whatever others write, until `refresh`.

    Attributes:
        folder: where its files are.
        info: its settings and identity.
        texts: by position; each access reads one from disk.
        sources: likewise, the document of each text, or None.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info, self._database = open_version(folder)
        self.embedder = self.info.settings.embedder
        self.dim = self.info.settings.dim
        self.identity = self.info.identity
        self.texts: Sequence[str] = Column(self._database, _TEXT)
        self.sources: Sequence[str | None] = Column(self._database, _SOURCE)

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
            texts: the passages.
            embedder: what makes their vectors; None for search by words alone.
            path: new folder.
            sources: the document of each text. Texts in a row of one source follow one another.
            resume: keep what an interrupted call has embedded, for the next one.

        Raises:
            TypeError, ValueError: a text is not a str or not valid Unicode; there is none, or not
                as many as sources.
            FileExistsError: something is at ``path``.
        """
        if isinstance(texts, str):
            raise TypeError(
                "Datastore.build: texts must be an iterable of str, got one str"
            )
        settings = Settings(
            embedder=embedder.name if embedder else None,
            dim=embedder.dim if embedder else 0,
        )
        with (
            new_folder(path, resume=resume) as folder,
            closing(Writer(folder, settings, resume=resume)) as writer,
        ):
            count = 0
            # A text without a source is a document of its own.
            rows = _rows(texts, sources)
            for (source, _), run in groupby(rows, key=lambda row: row[:2]):
                passages = [text for _, _, text in run]
                writer.add_passages(source, passages)
                count += len(passages)
            if not count:
                raise ValueError("Datastore.build: texts is empty, need at least 1")
            if sources is not None and len(sources) != count:
                raise ValueError(
                    f"Datastore.build: sources must have one for each of {count} texts, has "
                    f"{len(sources)}"
                )
            writer.choose()
            writer.commit(embedder)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> "Datastore":
        """Open the datastore in the folder. Reads it once, to see that it is as it was written, and
        runs nothing from it.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is not a datastore, or a file is missing or damaged.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"Datastore.open: {path}: no such folder")
        return cls(folder)

    def refresh(self) -> None:
        """Go on with the newest version. Positions of the one before mean nothing in it."""
        if read_info(self.folder) != self.info:
            # All at once: another thread sees one version or the other.
            self.__dict__ = vars(Datastore(self.folder))

    def update(
        self, documents: Mapping[str, str], embedder: Embedder | None = None
    ) -> None:
        """Add documents, or replace documents of the same sources, and switch to the new version.

        A new document comes last. It is cut as the datastore's others are; passages of one that
        `build` made have at most 800 characters. Only passages that are new are embedded.

        Args:
            documents: texts by their sources.
            embedder: the datastore's; None if it has no vectors.

        Raises:
            TypeError, ValueError: a source or a text is not a str or not valid Unicode; it is
                another embedder; no passage would be left; or another process writes.
        """
        for source, text in documents.items():
            check_text("Datastore.update", "a source", source)
            check_text("Datastore.update", f"document {source}", text)
        if embedder is not None:
            check_embedder(embedder, self, "Datastore.update")
        elif self.embedder is not None:
            raise ValueError(
                f"Datastore.update: the embedder must be given, it is {self.embedder}"
            )
        with self._next_version(embedder) as writer:
            for source, text in documents.items():
                writer.replace(source, text)

    def remove(self, sources: Iterable[str]) -> None:
        """Remove the documents of these sources, and go on with the new version.

        Raises:
            ValueError: there is no such document; no passage would be left; or another process
                writes.
        """
        with self._next_version() as writer:
            for source in sources:
                if not writer.remove(source):
                    raise ValueError(f"Datastore.remove: no document {source}")

    @contextmanager
    def _next_version(self, embedder: Embedder | None = None) -> Iterator[Writer]:
        """What writes the next version, which is there at the end of the block."""
        with locked(self.folder, self.folder), named_in_errors(self.folder):
            self.refresh()
            with closing(Writer(self.folder, self.info.settings, self.info)) as writer:
                yield writer
                if not writer.choose().searched:
                    raise ValueError(f"{self.folder}: no passage would be left")
                writer.commit(embedder, source=self.info.source)
            self.refresh()

    def verify(self) -> None:
        """Read everything, as `open` did. ValueError if something has changed since it was
        written."""
        open_version(self.folder)

    def documents(self) -> Iterator[tuple[str | None, str]]:
        """The source and the text of each document, with what is too short to be searched, and
        what is repeated."""
        rows = self._database.execute(
            "SELECT place, source, text FROM documents LEFT JOIN passages USING (first) "
            "LEFT JOIN texts USING (id) ORDER BY place, id"
        )
        for (_, source), passages in groupby(rows, key=lambda row: row[:2]):
            yield source, "".join(text or "" for _, _, text in passages)

    @cached_property
    def embeddings(self) -> torch.Tensor:  # type: ignore[override]
        """Read from disk when they are first asked for."""
        matrix = torch.empty(len(self), self.dim)
        if self.dim:
            vectors = by_position(self._database, "vector")
            for row, (vector,) in zip(matrix.numpy(), vectors, strict=True):
                row[:] = np.frombuffer(vector, np.float32)
        return matrix

    @cached_property
    def words(self) -> Words:
        """Search by words."""
        columns = by_position(self._database, "id, words")
        numbers = np.fromiter(columns, np.dtype((np.int64, 2)), len(self))
        return Words(self._holders, *numbers.T)

    def _holders(self, word: str) -> bytes:
        query = "SELECT holders FROM words WHERE word = ? ORDER BY first"
        return b"".join(row for (row,) in self._database.execute(query, (word,)))

    def following(self, position: int) -> int | None:
        """The next position, if it is in the same document, and that has a source; else None."""
        row = self._database.execute(_FOLLOWING, (position,)).fetchone()
        return row and row[0]  # type: ignore[no-any-return]

    def summary(self) -> list[str]:
        """Lines that describe the datastore."""
        vectors = f"{self.embedder} of dim {self.dim}" if self.dim else "no vectors"
        line = f"{counted(len(self), 'passage')}, {vectors}"
        return [line] if self.info.source is None else [line, self.info.source]


def _rows(
    texts: Iterable[str], sources: Sequence[str] | None
) -> Iterator[tuple[str | None, int, str]]:
    """Each text after its source and a number, which differs between texts without one."""
    for position, text in enumerate(texts):
        check_text("Datastore.build", f"texts[{position}]", text)
        if sources and position < len(sources):
            yield sources[position], 0, text
        else:
            yield None, position, text
