"""Records of a run that may be killed: a JSONL file, from which the next call goes on."""

import fcntl
import hashlib
import json
import lzma
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from hullft_ops.ttft.files import named_in_errors
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.store.base import Store
from hullft_ops.ttft.tokens import tokenizer_identity
from hullft_ops.ttft.validation import InputError, parse

# How every record begins.
_BEGINNING = b'{"run":"'
# How a file begins that xz compressed.
_XZ = b"\xfd7zXZ\0"


@dataclass(frozen=True)
class Records:
    """Records on disk, by their keys. `open_records` makes one."""

    path: Path
    file: FileIO
    rows: dict[Any, Any]

    def append(self, row: Any) -> None:
        """Write a record. It is on the disk when this returns."""
        with named_in_errors(self.path):
            content = row.model_dump_json().encode() + b"\n"
            while content:
                content = content[self.file.write(content) :]
            os.fsync(self.file.fileno())
        self.rows[row.key] = row


@contextmanager
def open_records(path: Path, run: str, kind: Any) -> Iterator[Records]:
    """Open a file of records to append to, or create it. Drops a last line that a kill cut off.

    Args:
        path: the file.
        run: the identity of the records to come; see `run_identity`.
        kind: their pydantic model, whose first field is ``run``; it has a ``key``.

    Raises:
        InputError: another process writes to it, it holds records of another run, or as
            `read_records`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A buffer would be written again when a full disk ends the block, without the file's name.
    with path.open("ab", buffering=0) as file:
        try:
            # The system unlocks it if the process dies.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"results {path}: another process writes to it") from error
        content = path.read_bytes()
        rows = _parsed(content, path, kind)
        for row in rows:
            if row.run != run:
                raise InputError(
                    f"results {path}: holds rows of another model, tokenizer, datastore, embedder "
                    f"or option (run {row.run}, this is {run}); name another file"
                )
        os.truncate(file.fileno(), content.rfind(b"\n") + 1)
        yield Records(path, file, {row.key: row for row in rows})


def read_records(path: Path, kind: Any) -> list[Any]:
    """The records of a file in order, without a last line that a kill cut off.

    xz may have compressed the file.

    Raises:
        OSError: the file cannot be read.
        InputError: a line is no record of this kind.
    """
    content = path.read_bytes()
    if content.startswith(_XZ):
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise InputError(f"results {path}: {error}") from error
    return _parsed(content, path, kind)


def _parsed(content: bytes, path: Path, kind: Any) -> list[Any]:
    *lines, last = content.split(b"\n")
    # Where no record is before it, its beginning must say that the file is ours.
    if last and not lines and not last.startswith(_BEGINNING):
        raise InputError(f"results {path}: line 1: is no row")
    return [
        parse(kind, line, f"results {path}: line {number}")
        for number, line in enumerate(lines, start=1)
    ]


def run_identity(
    language_model: LanguageModel, store: Store | None, options: Any
) -> str:
    """Differs if any weight, the tokenizer, a text, an embedding or an option does."""
    about = [
        language_model.model_identity,
        tokenizer_identity(language_model.tokenizer),
        getattr(store, "identity", None),
        getattr(store, "embedder", None),
        options,
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
