"""Records in a JSONL file, from which a killed run goes on."""

import fcntl
import lzma
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.files import named_in_errors
from hullft_ops.ttft.validation import parse

# How every row begins.
_BEGINNING = b'{"run":'
_LONG_BEGINNING = re.compile(rb'\{"run":"[0-9a-f]{16}","prompt":')
# How a file begins that xz compressed.
_XZ = b"\xfd7zXZ\0"
STRICT = ConfigDict(
    allow_inf_nan=False, frozen=True, strict=True, use_attribute_docstrings=True
)


class Record(BaseModel):
    """A row of a results file. Its second field is the prompt."""

    model_config = STRICT
    decided_by: ClassVar[str]
    """What a run's identity is over, in words."""

    run: str
    """The identity of the run that made the row."""

    @property
    def key(self) -> tuple[str, ...]:
        """Differs between the rows of a file."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What the row is of, in words."""
        raise NotImplementedError


Kind = TypeVar("Kind", bound=Record)


class ResultsFile(Generic[Kind]):
    """Rows on disk, by their keys. `open_records` makes one."""

    def __init__(self, path: Path, file: BinaryIO, rows: list[Kind]) -> None:
        self.rows = {row.key: row for row in rows}
        self._path = path
        self._file = file

    def append(self, row: Kind) -> None:
        """Write a row. It is on the disk when this returns; InputError if the file is gone."""
        with named_in_errors(self._path):
            self._file.write(row.model_dump_json().encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        if not os.fstat(self._file.fileno()).st_nlink:
            raise InputError(
                f"results {self._path}: was deleted or replaced during the run, and its rows with "
                "it; run the same command again"
            )
        self.rows[row.key] = row


@contextmanager
def open_records(path: Path, run: str, kind: type[Kind]) -> Iterator[ResultsFile[Kind]]:
    """Open a results file to append to, or create it. Drops a last line that a kill cut off.

    Raises:
        InputError: another process writes to it, it holds rows of another run, or as from
            `read_records`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
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
                    f"results {path}: holds rows of another {kind.decided_by} (run {row.run}, this "
                    f"is {run}); name another file"
                )
        *_, last = content.split(b"\n")
        if last and _is_torn(last):
            os.truncate(file.fileno(), len(content) - len(last))
        elif last:
            file.write(b"\n")
        yield ResultsFile(path, file, rows)


def read_records(path: Path, kind: type[Kind]) -> list[Kind]:
    """The rows of a results file in order, without a last line that a kill cut off.

    xz may have compressed the file.

    Raises:
        OSError: the file cannot be read.
        InputError: a line is not a row of this kind, or two rows have the same key.
    """
    content = path.read_bytes()
    if content.startswith(_XZ):
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise InputError(f"results {path}: {error}") from error
    return _parsed(content, path, kind)


def _parsed(content: bytes, path: Path, kind: type[Kind]) -> list[Kind]:
    *lines, last = content.split(b"\n")
    # Without a row before it, only a long beginning says that the file is ours.
    is_ours = bool(lines) or _LONG_BEGINNING.match(last)
    if last and not (is_ours and _is_torn(last)):
        lines.append(last)
    rows: dict[tuple[str, ...], Kind] = {}
    for number, line in enumerate(lines, start=1):
        place = f"results {path}: line {number}"
        row = parse(kind, line, place)
        if row.key in rows:
            raise InputError(f"{place}: a second row of {row.title}")
        rows[row.key] = row
    return list(rows.values())


def _is_torn(line: bytes) -> bool:
    """Whether a kill has cut off this last line: it begins as a row, and is no JSON."""
    try:
        TypeAdapter(Any).validate_json(line)
    except ValueError:
        return line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
    return False
