"""The file that records how far a write into a datastore has come, while the write is under way.

Everything that the journal names reaches the disk before the journal does. So a process may be
killed at any moment: the next one can finish the write or roll it back.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hullft_ops.ttft.store.format import (
    JOURNAL_FILE,
    DataFile,
    check_count,
    check_data_directory,
    check_source,
    data_file,
    read_json,
    refuse_link,
    write_json_durably,
)


@dataclass(frozen=True)
class Journal:
    """A write under way.

    Attributes:
        embedder: name of the embedder.
        dim: length of a vector.
        data: name of the data directory.
        settings: what the texts are made from. Only a write with the same settings may resume.
        source: the report on the texts, once they are written.
        shard: the file of the texts, once they are written.
        embedded: how many of the texts have a vector on the disk.
        embeddings_crc32: zlib CRC-32 of all vectors so far, including those of earlier shards.
    """

    embedder: str
    dim: int
    data: str
    settings: dict[str, Any]
    embeddings_crc32: int
    source: dict[str, Any] | None = None
    shard: DataFile | None = None
    embedded: int = 0

    def write(self, directory: Path) -> None:
        """Replace the journal in ``directory``, in one durable step."""
        write_json_durably(directory / JOURNAL_FILE, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> "Journal | None":
        """The journal in ``directory``, or None if no write is under way.

        Raises:
            ValueError: the journal is corrupt.
        """
        file = directory / JOURNAL_FILE
        refuse_link(file)
        if not file.is_file():
            return None
        values = read_json(file)
        shard = values.get("shard")
        found = None if shard is None else data_file(file, "shard", shard)
        try:
            journal = cls(**{**values, "shard": found})
        except TypeError as error:
            raise ValueError(f"{file} is not a datastore's journal: {error}") from error
        check_data_directory(file, journal.data)
        if not isinstance(journal.embedder, str) or not isinstance(journal.settings, dict):
            raise ValueError(
                f"{file}: embedder must be a string and settings an object, "
                f"got {journal.embedder!r} and {journal.settings!r}"
            )
        check_count(file, "dim", journal.dim, 1, 2**31 - 1)
        texts = journal.shard.count if journal.shard else 0
        check_count(file, "embedded", journal.embedded, 0, texts)
        check_count(file, "embeddings_crc32", journal.embeddings_crc32, 0, 2**32 - 1)
        if journal.source is not None:
            check_source(file, journal.source)
        return journal


@contextmanager
def locked(directory: Path, what: str = "datastore") -> Iterator[None]:
    """Keep other writers out of ``directory``. The system unlocks it if the process dies.

    Raises:
        ValueError: another process is writing there.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is writing the {what} {directory}") from error
        yield
    finally:
        os.close(descriptor)
