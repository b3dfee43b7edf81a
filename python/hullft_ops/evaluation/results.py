"""Results: a JSONL file from which a killed run goes on, and the rows of an evaluation."""

import fcntl
import json
import lzma
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

from hullft_ops.ttft.files import named_in_errors
from hullft_ops.ttft.validation import InputError, parse

# How every row begins.
_BEGINNING = re.compile(rb'\{"run":"[0-9a-f]{16}","prompt":')
# How a file begins that xz compressed.
_XZ = b"\xfd7zXZ\0"
_STRICT = ConfigDict(
    allow_inf_nan=False, frozen=True, strict=True, use_attribute_docstrings=True
)


class Score(BaseModel):
    """A score of one prompt."""

    model_config = _STRICT

    before: NonNegativeFloat
    """Without adaptation."""
    after: NonNegativeFloat
    """With adaptation."""


class Row(BaseModel):
    """One configuration on one prompt. Seconds are wall-clock."""

    model_config = _STRICT

    run: str
    """The identity of model, tokenizer, datastore, embedder and seed."""
    prompt: str
    """The prompt's id, which its text decides."""
    settings: dict[str, Any]
    """The options that matter."""
    domain: str
    scores: dict[str, Score] = {}
    """By name; empty if there is an error."""
    seconds: dict[str, NonNegativeFloat] = {}
    """By stage; empty if there is an error."""
    passes: NonNegativeInt = 0
    """Forward-backward passes."""
    error: str | None = None
    """Why there is no result, for example a loss that is not finite."""
    versions: dict[str, str | None]
    """Of the packages that decide the numbers, and the device of the model."""
    threads: int
    """Threads of torch."""

    @property
    def key(self) -> tuple[str, str]:
        return self.prompt, self.config

    @cached_property
    def config(self) -> str:
        """The key of the settings."""
        return key_of(self.settings)

    @property
    def seconds_total(self) -> float:
        """From the prompt to the adapted model."""
        return sum(self.seconds.values())


def key_of(settings: Mapping[str, Any]) -> str:
    """JSON of some settings, the same whatever their order."""
    return json.dumps(settings, sort_keys=True)


@dataclass(frozen=True)
class ResultsFile:
    """Rows on disk, by their keys. `open_results` makes one."""

    path: Path
    file: FileIO
    rows: dict[Any, Any]

    def append(self, row: Any) -> None:
        """Write a row. It is on the disk when this returns."""
        with named_in_errors(self.path):
            content = row.model_dump_json().encode() + b"\n"
            while content:
                content = content[self.file.write(content) :]
            os.fsync(self.file.fileno())
        self.rows[row.key] = row


@contextmanager
def open_results(path: Path, run: str, kind: Any = Row) -> Iterator[ResultsFile]:
    """Open a results file to append to, or create it. Drops a last line that a kill cut off.

    Rows are of any ``kind`` with a ``run``, a ``prompt`` after it and a ``key``.

    Args:
        path: the file.
        run: the identity of the rows to come, 16 hexadecimal digits.
        kind: their class.

    Raises:
        InputError: another process writes to it, it holds rows of another run, or as `read_rows`.
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
        yield ResultsFile(path, file, {row.key: row for row in rows})


def read_rows(path: Path, kind: Any = Row) -> list[Any]:
    """The rows of a results file in order, without a last line that a kill cut off.

    xz may have compressed the file.

    Raises:
        OSError: the file cannot be read.
        InputError: a line is not a row.
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
    # Where no row is before it, its beginning must say that the file is ours.
    if last and not lines and not _BEGINNING.match(last):
        raise InputError(f"results {path}: line 1: is no row")
    return [
        parse(kind, line, f"results {path}: line {number}")
        for number, line in enumerate(lines, start=1)
    ]
