"""How a version of a datastore is written."""

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from hullft_ops.ttft.embedding import Embedder
from hullft_ops.ttft.store.base import checked_vectors, text_digest
from hullft_ops.ttft.store.cutting import split_passages
from hullft_ops.ttft.store.version import (
    INFO,
    SCHEMA,
    Info,
    Settings,
    identity_in,
    version_file,
)
from hullft_ops.ttft.store.words import Postings
from hullft_ops.ttft.terminal import progress

# So many texts are embedded at a time. A resumed write forms the same groups, because the texts
# beside it change the last bits of a vector.
GROUP = 128
# The words of so many passages are in memory.
_PASSAGES = 2**16

# Turns groups of texts into the vectors float32 [n, dim] of each group, in their order.
Embed = Callable[[Iterable[list[str]]], Iterable[np.ndarray]]


class Counts(NamedTuple):
    """How many passages of a version are searched, too short, and repeated."""

    searched: int
    short: int
    repeated: int


class Writer:
    """Writes a version of a datastore: its documents, then `choose` and `commit`.

    Nobody else may write the datastore until `close`.

    Args:
        folder: of the datastore.
        settings: of the datastore.
        previous: of the newest version, whose documents this one has too; None if there is none.
        resume: begin without documents, but reuse passages and vectors of the previous version and
            of an interrupted one, found by their texts.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        previous: Info | None = None,
        *,
        resume: bool = False,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._version = 1 if previous is None else previous.version + 1
        self._file = version_file(folder, self._version)
        self._database = sqlite3.connect(self._file)
        # An interrupted version may be of another embedder.
        mark = crc32(settings.model_dump_json().encode()) >> 1
        if not (
            resume and [(mark,)] == [*self._database.execute("PRAGMA user_version")]
        ):
            self._begin(previous)
            self._database.execute(f"PRAGMA user_version = {mark}")
        # A kill ends the process, not the system.
        self._database.execute("PRAGMA synchronous = OFF")
        if resume:
            self._database.execute("DELETE FROM documents")
        [(last,)] = self._database.execute("SELECT max(seq) FROM sqlite_sequence")
        self._id = last or 0
        self._postings = Postings()

    def close(self) -> None:
        """Let go of the file: what is not committed is lost."""
        self._database.close()

    def _begin(self, previous: Info | None) -> None:
        """Copy the previous version, all at once."""
        file = version_file(self._folder, previous.version) if previous else ":memory:"
        with closing(sqlite3.connect(file)) as source:
            if previous is None:
                source.executescript(SCHEMA)
            source.backup(self._database)

    def remove(self, source: str) -> bool:
        """Remove the documents of a source; whether there are any."""
        query = "DELETE FROM documents WHERE source = ?"
        return self._database.execute(query, (source,)).rowcount > 0

    def replace(self, source: str, text: str) -> None:
        """Give a document another text, or append it."""
        query = "UPDATE documents SET digest = ?, first = ? WHERE source = ?"
        digest = text_digest(text)
        values = (digest, self._first(digest, text), source)
        if not self._database.execute(query, values).rowcount:
            self.add(source, text)

    def add(self, source: str | None, text: str) -> None:
        """Append a document. It is cut unless the datastore has its text."""
        digest = text_digest(text)
        self._add_document(source, digest, self._first(digest, text))

    def add_passages(self, source: str | None, passages: list[str]) -> None:
        """Append a document that is cut."""
        digest = text_digest("".join(passages))
        self._add_document(source, digest, self._add_passages(digest, passages))

    def _add_document(self, source: str | None, digest: bytes, first: int) -> None:
        query = "INSERT INTO documents (source, digest, first) VALUES (?, ?, ?)"
        self._database.execute(query, (source, digest, first))

    def _first(self, digest: bytes, text: str) -> int:
        """The first passage of a text."""
        query = "SELECT first FROM cuts WHERE digest = ?"
        for (first,) in self._database.execute(query, (digest,)):
            return int(first)
        passages = split_passages(text, self._settings.passage_chars)
        return self._add_passages(digest, passages)

    def _add_passages(self, digest: bytes, passages: Iterable[str]) -> int:
        """Add the passages of a text, and return the first."""
        first = self._id + 1
        for passage in passages:
            self._id += 1
            words = self._index(self._id, passage)
            is_long = len(passage.strip()) >= self._settings.min_chars
            self._database.execute(
                "INSERT INTO passages VALUES (?, ?, ?, ?, ?)",
                (self._id, first, text_digest(passage), is_long, words),
            )
            query = "INSERT INTO texts VALUES (?, ?)"
            self._database.execute(query, (self._id, passage))
        first = first if self._id >= first else 0
        query = "INSERT OR REPLACE INTO cuts VALUES (?, ?)"
        self._database.execute(query, (digest, first))
        return first

    def _index(self, id: int, passage: str) -> int:
        """Index the words of a passage; how many it has."""
        if self._postings.passages >= _PASSAGES:
            self._write_words()
        return self._postings.add(id, passage)

    def _write_words(self) -> None:
        # In order, nothing that is on the disk is read again.
        for word, holders in sorted(self._postings.holders.items()):
            values = (word, holders[0] >> 32, holders)
            self._database.execute("INSERT INTO words VALUES (?, ?, ?)", values)
        self._postings = Postings()

    def choose(self) -> Counts:
        """Choose the passages that are searched, once all documents are there. Without any, there
        is nothing to commit."""
        self._write_words()
        # Of equal passages the first is searched.
        self._database.executescript("""
            DELETE FROM cuts WHERE first NOT IN (SELECT first FROM documents);
            DELETE FROM passages WHERE first NOT IN (SELECT first FROM documents);
            DELETE FROM texts WHERE id NOT IN (SELECT id FROM passages);
            DELETE FROM vectors WHERE text_digest NOT IN (SELECT text_digest FROM passages);
            DELETE FROM positions;
            INSERT INTO positions
            SELECT row_number() OVER (ORDER BY place, id) - 1, id, place FROM (
                SELECT id, place, row_number() OVER (
                    PARTITION BY text_digest ORDER BY place, id
                ) AS occurrence
                FROM documents JOIN passages USING (first) WHERE is_long
            ) WHERE occurrence = 1;
        """)
        self._forget_words()
        [(total, long)] = self._database.execute(
            "SELECT count(*), total(is_long) FROM documents JOIN passages USING (first)"
        )
        [(searched,)] = self._database.execute("SELECT count(*) FROM positions")
        if not searched:
            self._file.unlink()
        return Counts(searched, total - int(long), int(long) - searched)

    def _forget_words(self) -> None:
        """Index the words anew if most of the index is of passages that are deleted."""
        [(holders, words)] = self._database.execute(
            "SELECT (SELECT total(length(holders)) / 8 FROM words), total(words) FROM passages"
        )
        if holders > words:
            self._database.execute("DELETE FROM words")
            for id, text in self._database.execute("SELECT id, text FROM texts"):
                self._index(id, text)
            self._write_words()

    def commit(
        self,
        embedder: Embedder | None = None,
        *,
        embed: Embed | None = None,
        source: str | None = None,
        state: str | None = None,
    ) -> None:
        """Embed what has no vector yet, and let the version take the place of the previous one.

        Args:
            embedder: makes the vectors; None if the datastore has none.
            embed: in place of ``embedder.encode``.
            source, state: as in `Info`.
        """
        if embedder is not None:
            self._embed(embedder, embed)
        identity = identity_in(self._database)
        self._database.commit()
        self.close()
        info = Info(
            version=self._version,
            settings=self._settings,
            identity=identity,
            source=source,
            state=state,
        )
        info = info.model_copy(update={"sha256": info.digest(self._file)})
        partial = self._folder / f"{INFO}.partial"
        partial.write_text(info.model_dump_json(indent=1), encoding="utf-8")
        partial.rename(self._folder / INFO)
        for other in self._folder.glob("version-*.sqlite"):
            if other != self._file:
                other.unlink()

    def _embed(self, embedder: Embedder, embed: Embed | None) -> None:
        """Embed the texts that have no vector yet. Each group is kept at once."""
        missing = self._database.execute(
            "SELECT text_digest, id FROM positions JOIN passages USING (id) "
            "WHERE text_digest NOT IN (SELECT text_digest FROM vectors) ORDER BY position"
        ).fetchall()
        self._database.commit()
        starts = range(0, len(missing), GROUP)
        groups = [missing[start : start + GROUP] for start in starts]
        batches = ([self._text(id) for _, id in group] for group in groups)
        encoded = embed(batches) if embed else map(embedder.encode, batches)
        pairs = progress(
            zip(groups, encoded, strict=True),
            desc="embedding",
            total=len(groups),
            unit=" texts",
            unit_scale=GROUP,
        )
        what, dim = f"the vectors of embedder {embedder.name}", embedder.dim
        for group, block in pairs:
            vectors = checked_vectors(what, block, count=len(group), dim=dim)
            rows = (
                (text, v.tobytes()) for (text, _), v in zip(group, vectors, strict=True)
            )
            self._database.executemany("INSERT INTO vectors VALUES (?, ?)", rows)
            self._database.commit()

    def _text(self, id: int) -> str:
        query = "SELECT text FROM texts WHERE id = ?"
        [(text,)] = self._database.execute(query, (id,))
        return text  # type: ignore[no-any-return]
