"""Results: a JSONL file from which a killed run goes on, and the rows of an evaluation."""

import fcntl
import json
import lzma
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
)

from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.files import named_in_errors
from hullft_ops.ttft.validation import parse

# The stages of an adaptation whose seconds a row holds.
STAGES = ("embed", "search", "select", "finetune", "prefill")
# How every row begins.
_BEGINNING = b'{"run":'
_LONG_BEGINNING = re.compile(rb'\{"run":"[0-9a-f]{16}","prompt":')
# How a file begins that xz compressed.
_XZ = b"\xfd7zXZ\0"
_STRICT = ConfigDict(
    allow_inf_nan=False, frozen=True, strict=True, use_attribute_docstrings=True
)


# float64 is exact below 2**53.
Count = Annotated[int, Field(ge=0, lt=2**53)]
# Within these, means and ratios of means are finite.
Measured = Annotated[float, Field(ge=0, le=1e15)]


def _checked_base(value: float) -> float:
    if 0 < value < 1e-100:
        raise ValueError(f"must be 0 or at least 1e-100, got {value}")
    return value


class Score(BaseModel):
    """A score of one prompt."""

    model_config = _STRICT

    before: Annotated[Measured, AfterValidator(_checked_base)]
    """Without adaptation."""
    after: Measured
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
    adapter: str | None = None
    """The identity of the adapter that the settings name."""
    domain: str
    seed: int
    scores: dict[str, Score] = {}
    """By name; empty if there is an error."""
    seconds: dict[str, Measured] = {}
    """By stage; empty if there is an error."""
    passes: Count = 0
    """Forward-backward passes."""
    support_size: Count = 0
    """Different passages."""
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


class ResultsFile:
    """Rows on disk, by their keys. `open_results` makes one."""

    def __init__(self, path: Path, file: FileIO, rows: list[Any]) -> None:
        self.rows = {row.key: row for row in rows}
        self._path = path
        self._file = file

    def append(self, row: Any) -> None:
        """Write a row. It is on the disk when this returns; InputError if the file is gone."""
        with named_in_errors(self._path):
            content = row.model_dump_json().encode() + b"\n"
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())
        if not os.fstat(self._file.fileno()).st_nlink:
            raise InputError(
                f"results {self._path}: was deleted or replaced during the run, and its rows with "
                "it; run the same command again"
            )
        self.rows[row.key] = row


@contextmanager
def open_results(
    path: Path,
    run: str,
    kind: Any = Row,
    *,
    adapters: Mapping[str, str] | None = None,
) -> Iterator[ResultsFile]:
    """Open a results file to append to, or create it. Drops a last line that a kill cut off.

    Rows are of any ``kind`` with a ``run``, a ``prompt`` after it and a ``key``.

    Args:
        path: the file.
        run: the identity of the rows to come.
        kind: their class.
        adapters: the identities of their adapters, by the folder in their settings.

    Raises:
        InputError: another process writes to it, it holds rows of another run or adapter, or as
            `read_rows`.
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
            if adapters:
                _check_adapter(row, adapters, path)
        *_, last = content.split(b"\n")
        if last and _is_torn(last):
            os.truncate(file.fileno(), len(content) - len(last))
        elif last:
            file.write(b"\n")
        yield ResultsFile(path, file, rows)


def _check_adapter(row: Row, adapters: Mapping[str, str], path: Path) -> None:
    folder = str(row.settings.get("adapter"))
    if folder in adapters and row.adapter != adapters[folder]:
        raise InputError(
            f"results {path}: holds rows of what adapter {folder} was before it changed; "
            "name another file"
        )


def read_rows(path: Path, kind: Any = Row) -> list[Any]:
    """The rows of a results file in order, without a last line that a kill cut off.

    xz may have compressed the file.

    Raises:
        OSError: the file cannot be read.
        InputError: a line is not a row, or two rows have the same key.
    """
    if path.is_dir():
        raise InputError(f"results {path}: is a folder, must be a file")
    content = path.read_bytes()
    if content.startswith(_XZ):
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise InputError(f"results {path}: {error}") from error
    return _parsed(content, path, kind)


def _parsed(content: bytes, path: Path, kind: Any) -> list[Any]:
    *lines, last = content.split(b"\n")
    # Without a row before it, only a long beginning says that the file is ours.
    is_ours = bool(lines) or _LONG_BEGINNING.match(last)
    if last and not (is_ours and _is_torn(last)):
        lines.append(last)
    rows: dict[tuple[str, ...], Any] = {}
    for number, line in enumerate(lines, start=1):
        place = f"results {path}: line {number}"
        row = parse(kind, line, place)
        if row.key in rows:
            raise InputError(f"{place}: a second row of {' on '.join(row.key[::-1])}")
        rows[row.key] = row
    return list(rows.values())


def _is_torn(line: bytes) -> bool:
    """Whether a kill has cut off this last line: it begins as a row, and is no JSON."""
    try:
        TypeAdapter(Any).validate_json(line)
    except ValueError:
        return line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
    return False
