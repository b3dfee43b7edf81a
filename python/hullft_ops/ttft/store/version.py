"""The files of a datastore.

- ``datastore.json``: the manifest, see `Info`. Each version replaces it, by a rename.
- ``version-N.sqlite``: version N, see `SCHEMA`. Once the manifest names it, it is not changed any
  more: whoever has it open can go on reading.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from hullft_ops.ttft.files import digest_of
from hullft_ops.ttft.store.base import identity_of
from hullft_ops.ttft.store.cutting import PASSAGE_CHARS
from hullft_ops.ttft.validation import InputError, input_errors, parse

INFO = "datastore.json"
# The passages of a text have ids in a row from `first` on. Documents with the same text share them,
# which `cuts` finds by its digest.
# Passages are searched by position; of several with the same text, the first. Holders are as in
# `Postings`, in a row for each part of the passages, which begins with `first`; ids of deleted
# passages are not used again. Vectors are float32 [dim].
SCHEMA = """
CREATE TABLE documents (place INTEGER PRIMARY KEY, source TEXT, digest BLOB, first INTEGER);
CREATE TABLE cuts (digest BLOB PRIMARY KEY, first INTEGER) WITHOUT ROWID;
CREATE TABLE passages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, first INTEGER, text_digest BLOB, is_long INTEGER,
    words INTEGER
);
CREATE TABLE texts (id INTEGER PRIMARY KEY, text TEXT);
CREATE TABLE positions (position INTEGER PRIMARY KEY, id INTEGER, place INTEGER);
CREATE TABLE words (
    word TEXT, first INTEGER, holders BLOB, PRIMARY KEY (word, first)
) WITHOUT ROWID;
CREATE TABLE vectors (text_digest BLOB PRIMARY KEY, vector BLOB);
CREATE INDEX passages_by_first ON passages (first);
"""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Settings(_Model):
    """What all versions of a datastore share.

    Attributes:
        embedder: the name of the embedder that makes the vectors; None if there are none.
        dim: length of a vector; 0 likewise.
        passage_chars: characters of a passage at most, where a document is cut.
        min_chars: shorter passages are not searched.
        corpus: what is indexed, and how it is read; None if a program gives the texts.
    """

    embedder: str | None
    dim: NonNegativeInt
    passage_chars: PositiveInt = PASSAGE_CHARS
    min_chars: NonNegativeInt = 0
    corpus: str | None = None


class Info(_Model):
    """The contents of ``datastore.json``.

    Attributes:
        format: of the files.
        version: how often the datastore was written.
        settings: what its versions share.
        identity: SHA-256 over the documents, the texts and the vectors.
        source: what was read and left out, in words; None if a program gave the texts.
        state: as `Corpus.state`; None likewise.
        sha256: over all of this, and the version's file.
    """

    format: Literal[10] = 10
    version: PositiveInt
    settings: Settings
    identity: str
    source: str | None
    state: str | None
    sha256: str = ""

    def digest(self, file: Path) -> str:
        """What ``sha256`` must be."""
        content = self.model_dump_json(exclude={"sha256"}) + digest_of(file)
        return hashlib.sha256(content.encode()).hexdigest()


def read_info(folder: Path) -> Info:
    """The manifest. ValueError if there is none, or it is not one."""
    file = folder / INFO
    if not file.is_file():
        raise InputError(f"{folder} is not a datastore: it has no {INFO}")
    return parse(Info, file.read_bytes(), str(file))


def open_version(folder: Path) -> tuple[Info, sqlite3.Connection]:
    """The manifest, and the tables of the newest version. ValueError if it is damaged, or there is
    none."""
    while True:
        info = read_info(folder)
        file = version_file(folder, info.version)
        try:
            with input_errors(str(file)):
                if info.sha256 != info.digest(file):
                    raise ValueError("is damaged: it is not as it was written")
                # Nothing changes the file: no lock is needed, nor a folder that can be written.
                address = f"{file.absolute().as_uri()}?immutable=1"
                database = sqlite3.connect(address, uri=True, check_same_thread=False)
                # Views in a forged file call no functions.
                database.execute("PRAGMA trusted_schema = OFF")
                return info, database
        except InputError:
            # Another process may have written the next version, and deleted this one.
            if read_info(folder) == info:
                raise


def version_file(folder: Path, version: int) -> Path:
    return folder / f"version-{version}.sqlite"


def by_position(database: sqlite3.Connection, columns: str) -> Iterator[Any]:
    """Columns of the passages that are searched, and of their vectors."""
    return database.execute(
        f"SELECT {columns} FROM positions JOIN passages USING (id) "
        "LEFT JOIN vectors USING (text_digest) ORDER BY position"
    )


def identity_in(database: sqlite3.Connection) -> str:
    """The identity of a version."""
    documents = database.execute(
        "SELECT source, digest, count(position) FROM documents LEFT JOIN positions USING (place) "
        "GROUP BY place ORDER BY place"
    )
    return identity_of(documents, by_position(database, "text_digest, vector"))


class Column(Sequence[Any]):
    """Values by position; each access reads from disk."""

    def __init__(self, database: sqlite3.Connection, query: str) -> None:
        [(count,)] = database.execute("SELECT count(*) FROM positions")
        self._database = database
        self._positions = range(count)
        self._query = query

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[i] for i in self._positions[position]]
        place = self._positions[position]
        [(value,)] = self._database.execute(self._query, (place,))
        return value
