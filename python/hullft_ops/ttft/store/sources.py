"""Reading a corpus record by record: JSON, Parquet, texts, a folder of files, an HF dataset."""

import codecs
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

import pyarrow as pa
import pyarrow.parquet

from hullft_ops._extras import needed_by
from hullft_ops.ttft.store.format import (
    JOURNAL_FILE,
    MANIFEST_FILE,
    OWN_DIRECTORIES,
    Counts,
)

if TYPE_CHECKING:
    import datasets

# No text is that long. A few compressed bytes can hold an endless one, which must not fill memory.
_MAX_LINE_BYTES = 1 << 28
_NAMED = 5
_JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
_TEXT_SUFFIXES = {".md", ".rst", ".txt"}
_COMPRESSIONS = {".zst", ".gz", ".bz2"}
# A text in UTF-8 has no zero byte, and a binary file is likely to have one this early.
_LOOKED_AT_BYTES = 1 << 13
STDIN = "-"
# Before this many records, a share of bad ones says little.
_JUDGED_RECORDS = 100

Record = dict[str, Any]
# A record's values, or what is wrong with them; the other also has its place.
Values = Mapping[str, Any] | str
Raw = tuple[str, Values]


class SourceError(ValueError):
    """A corpus that cannot be read; the message says why."""


@dataclass(frozen=True)
class Source:
    """A corpus, and which of its fields to read.

    Attributes:
        corpus: a path, "-" for stdin, or a `datasets.Dataset`. In a folder, every text file at any
            depth is a record, except symbolic links, files of datastores and hidden files: those
            whose name, or a folder's name on the way to them, begins with a dot. The path itself
            may be hidden. Stdin is JSONL if it begins with "{", else one text.
        text_column: the field that holds the text.
        metadata: more fields to keep. A record that lacks one gets None; if all records lack it,
            that is an error. "text" is the name of the text itself, whatever ``text_column`` is.
        max_bad_share: the share of records that may be malformed.
        include: in a folder, read only the files that one of these patterns matches. A pattern
            matches a path below the folder, or the name of a file or folder on it. ``*`` matches
            slashes too.
        exclude: in a folder, leave out what one of these patterns matches.
    """

    corpus: "str | Path | datasets.Dataset"
    text_column: str = "text"
    metadata: tuple[str, ...] = ()
    max_bad_share: float = 0.01
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("metadata", "include", "exclude"):
            if isinstance(value := getattr(self, name), str):
                raise TypeError(
                    f"Source: {name} must be a sequence of str, got one str {value!r}"
                )
        if "text" in self.metadata and self.text_column != "text":
            raise SourceError(
                'metadata must not name "text", the datastore\'s name of the text, here from '
                f"{self.text_column!r}, got {', '.join(self.metadata)}"
            )

    @property
    def name(self) -> str:
        """Its name in reports and errors."""
        if _is_dataset(self.corpus):
            return f"dataset {self.corpus._fingerprint}"
        return "stdin" if str(self.corpus) == STDIN else str(self.corpus)

    def records(self, counts: Counts) -> Iterator[Record]:
        """Each record's "text", its "source" (file and line, row or path) and its metadata.

        FileNotFoundError if there is no such path, SourceError if it cannot be read as a corpus.
        """
        missing = set(self.metadata)
        for place, values in self._raw(counts):
            counts.records += 1
            record = self._record(place, values)
            if isinstance(record, str):
                counts.malformed += 1
                counts.malformed_named = [
                    *counts.malformed_named,
                    f"{place}: {record}",
                ][:_NAMED]
                if counts.records >= _JUDGED_RECORDS:
                    self._check_share(counts)
                continue
            missing -= {name for name in missing if record[name] is not None}
            yield record
        self._check_share(counts)
        if missing and counts.records > counts.malformed:
            names = ", ".join(name for name in self.metadata if name in missing)
            raise SourceError(f"{self.name}: no record has the metadata {names}")

    def _check_share(self, counts: Counts) -> None:
        if counts.malformed > self.max_bad_share * counts.records:
            share = f"{counts.malformed} of {counts.records} records are malformed"
            most, named = (
                f"max_bad_share {self.max_bad_share:g}",
                "; ".join(counts.malformed_named),
            )
            raise SourceError(f"{self.name}: {share}, more than {most}: {named}")

    def _record(self, place: str, values: Values) -> Record | str:
        """The record to keep, or what is wrong with it."""
        if isinstance(values, str):
            return values
        text = values.get(self.text_column)
        if not isinstance(text, str):
            return f'no string "{self.text_column}"'
        kept = {name: values.get(name) for name in self.metadata}
        for name, value in {self.text_column: text, **kept}.items():
            if isinstance(value, str) and not is_unicode(value):
                return f'"{name}" with half a surrogate pair'
        return {"text": text, "source": place, **kept}

    def _raw(self, counts: Counts) -> Iterator[Raw]:
        if _is_dataset(self.corpus):
            return self._dataset_rows(self.corpus)
        path, stdin = Path(self.corpus), str(self.corpus) == STDIN
        if not stdin and not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        is_saved = (path / "state.json").is_file() or (
            path / "dataset_dict.json"
        ).is_file()
        if path.is_dir() and not is_saved:
            return self._files(path, counts)
        if self.include or self.exclude:
            raise SourceError(
                f"{self.name}: include and exclude need a folder of files"
            )
        if stdin:
            return self._stdin(sys.stdin.buffer)
        if is_saved:
            return self._dataset_rows(_saved_dataset(path))
        if path.suffix == ".parquet":
            return self._parquet_rows(path)
        suffix = ["", *(s for s in path.suffixes if s not in _COMPRESSIONS)][-1]
        if suffix in _JSON_SUFFIXES | _TEXT_SUFFIXES:
            return self._file(path, suffix)
        raise SourceError(
            f"{path}: must be .jsonl, .json, .md, .rst or .txt (optionally .zst, .gz or .bz2), "
            ".parquet, a folder of files or a saved dataset"
        )

    def _file(self, path: Path, suffix: str) -> Iterator[Raw]:
        try:
            with BufferedReader(
                pa.input_stream(str(path), compression="detect")
            ) as file:
                head = file.peek().removeprefix(codecs.BOM_UTF8).lstrip()
                if suffix in _TEXT_SUFFIXES:
                    yield path.name, self._whole(file.read(_MAX_LINE_BYTES + 1))
                elif suffix == ".json" and head.startswith(b"["):
                    yield from self._array(path, file)
                else:
                    yield from _json_lines(path.name, _lines(file))
        # The errors of decompression do not say which file is damaged.
        except OSError as error:
            raise SourceError(f"{path}: {error}") from error

    def _files(self, folder: Path, counts: Counts) -> Iterator[Raw]:
        for path in sorted(
            _walk(folder, folder, _patterns(self.include), _patterns(self.exclude))
        ):
            name = path.relative_to(folder).as_posix()
            place = name.encode(errors="replace").decode()
            if place != name:
                yield place, "a name that is not UTF-8"
                continue
            with path.open("rb") as file:
                head = file.read(_LOOKED_AT_BYTES)
                content = head if b"\0" in head else head + file.read(_MAX_LINE_BYTES)
            found = self._whole(content)
            if isinstance(found, str) and len(content) <= _MAX_LINE_BYTES:
                counts.binary += 1
                counts.binary_named = [*counts.binary_named, place][:_NAMED]
            else:
                yield place, found

    def _stdin(self, stdin: BinaryIO) -> Iterator[Raw]:
        lines = _lines(stdin)
        first = next(lines, b"")
        if first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
            yield from _json_lines("stdin", chain([first], lines))
        else:
            yield "stdin", self._whole(first + stdin.read(_MAX_LINE_BYTES))

    def _array(self, path: Path, file: BinaryIO) -> Iterator[Raw]:
        content = file.read(_MAX_LINE_BYTES + 1)
        if len(content) > _MAX_LINE_BYTES:
            raise SourceError(
                f"{path}: an array longer than {_MAX_LINE_BYTES} bytes must be JSONL"
            )
        try:
            items = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}: not JSON: {error}") from error
        for number, item in enumerate(items):
            values = {self.text_column: item} if isinstance(item, str) else item
            is_object = isinstance(values, dict)
            yield (
                f"{path.name}:{number}",
                values if is_object else "not an object or a string",
            )

    def _whole(self, content: bytes) -> dict[str, str] | str:
        """The text of a file as a record, or what is wrong with it."""
        if len(content) > _MAX_LINE_BYTES:
            return f"longer than {_MAX_LINE_BYTES} bytes"
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return "not UTF-8"
        if "\0" in text:
            return "not text"
        return {self.text_column: text.replace("\r\n", "\n").replace("\r", "\n")}

    def _parquet_rows(self, path: Path) -> Iterator[Raw]:
        try:
            table = pa.parquet.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise SourceError(f"{path}: not Parquet: {error}") from error
        columns = self._columns(table.schema_arrow.names)
        batches = table.iter_batches(batch_size=256, columns=columns)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        return ((f"{path.name}:{number}", row) for number, row in enumerate(rows))

    def _dataset_rows(self, dataset: "datasets.Dataset") -> Iterator[Raw]:
        rows = dataset.select_columns(self._columns(dataset.column_names))
        return ((f"row {number}", row) for number, row in enumerate(rows))

    def _columns(self, have: list[str]) -> list[str]:
        columns = list(dict.fromkeys([self.text_column, *self.metadata]))
        missing = [column for column in columns if column not in have]
        if missing:
            raise SourceError(
                f"{self.name}: no column {', '.join(missing)}; has {', '.join(have)}"
            )
        return columns


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Each line; of a line that is too long, only enough to show that it is."""
    while line := file.readline(_MAX_LINE_BYTES + 1):
        yield line
        while len(line) > _MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES + 1)


def _json_lines(name: str, lines: Iterable[bytes]) -> Iterator[Raw]:
    for number, line in numbered(lines):
        try:
            yield f"{name}:{number}", object_of(line)
        except ValueError as error:
            yield f"{name}:{number}", str(error)


def _is_dataset(corpus: object) -> "TypeGuard[datasets.Dataset]":
    # Only somebody who has imported the library can have one.
    library = sys.modules.get("datasets")
    return library is not None and isinstance(corpus, library.Dataset)


def _saved_dataset(path: Path) -> "datasets.Dataset":
    with needed_by(f"Source: {path}"):
        import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    # The library does not document what it raises for foreign files.
    except Exception as error:
        raise SourceError(f"{path}: not a saved dataset: {error!r}") from error
    if isinstance(dataset, datasets.DatasetDict):
        raise SourceError(
            f"{path}: has the splits {', '.join(dataset)}: give the folder of one"
        )
    return dataset


def _walk(
    top: Path, folder: Path, wanted: list[str], unwanted: list[str]
) -> Iterator[Path]:
    entries = [entry for entry in os.scandir(folder) if not entry.is_symlink()]
    if {MANIFEST_FILE, JOURNAL_FILE} & {entry.name for entry in entries} and any(
        OWN_DIRECTORIES.fullmatch(entry.name) for entry in entries if entry.is_dir()
    ):
        # A datastore, of which no file is the user's.
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or _matches(top, path, unwanted):
            continue
        if entry.is_dir():
            yield from _walk(top, path, wanted, unwanted)
        elif entry.is_file() and (not wanted or _matches(top, path, wanted)):
            yield path


def _patterns(globs: Iterable[str]) -> list[str]:
    return [glob.removeprefix("./").removeprefix("**/").rstrip("/") for glob in globs]


def _matches(folder: Path, path: Path, patterns: list[str]) -> bool:
    """Whether a pattern matches the path, that of a folder above it, or the name of one of them."""
    parts = path.relative_to(folder).parts if patterns else ()
    tried = {*parts, *("/".join(parts[:count]) for count in range(1, len(parts) + 1))}
    return any(fnmatchcase(part, pattern) for pattern in patterns for part in tried)


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1, without a byte-order mark."""
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line


def object_of(line: bytes) -> dict[str, Any]:
    """The object on a line. If there is none, a ValueError says why, in a few words."""
    if len(line) > _MAX_LINE_BYTES:
        raise ValueError(f"longer than {_MAX_LINE_BYTES} bytes")
    try:
        found = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    # ValueError also for an integer with more digits than Python reads.
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode it. JSON can spell half a surrogate pair, which it cannot."""
    return text.encode(errors="replace").decode() == text
