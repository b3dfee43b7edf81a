"""Reading a corpus record by record: whatever `datasets` reads, and folders of text and HTML."""

import codecs
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from hullft_ops._extras import needed_by
from hullft_ops._terminal import listed
from hullft_ops.ttft.errors import InputError, first_line
from hullft_ops.ttft.store.format import INFO
from hullft_ops.ttft.validation import options_class

STDIN = "-"
_FORMATS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".tsv": "tsv",
}
_COMPRESSIONS = (".bz2", ".gz", ".xz", ".zst")
_HTML = (".htm", ".html")
# Nobody would adapt to a menu.
_HIDDEN = ("nav", "script", "style", "template")
# The elements that begin and end a line.
_BLOCK = re.compile("br|dd|div|dt|h[1-6]|li|p|td|th|title")
# Names on the hub lack these suffixes.
_FILE_SUFFIXES = (*_FORMATS, *_COMPRESSIONS, *_HTML, ".md", ".txt")
_NOT_TEXT = "not UTF-8 text"
_HEAD_CHARS = 1 << 13

# Columns of a record, by name.
Record = dict[str, Any]


@options_class
class CorpusConfig:
    """What is read of a corpus."""

    text_column: str = "text"
    """The column that holds the text."""

    include: tuple[str, ...] = ()
    """In a folder, read only files whose name, or path below the folder, matches one of these
    patterns. ``*`` matches slashes too."""
    exclude: tuple[str, ...] = ()
    """In a folder, leave out files that match one of these patterns."""


@options_class
class IndexConfig(CorpusConfig):
    """How a corpus is read and cut into passages."""

    metadata: tuple[str, ...] = ()
    """Columns to keep beside each text, as strings."""
    chunk_tokens: NonNegativeInt | None = None
    """Length of a passage in the embedder's tokens: None for as many as the embedder reads, or for
    800 characters without an embedder; 0 for whole records."""
    min_chars: NonNegativeInt = 16
    """Leave out passages with fewer characters, not counting blanks at both ends."""


class Corpus:
    """What there is to read, as it is when this is made.

    Args:
        name: a folder of text files, a file, "-" for stdin, or the name of a dataset on the hub.
        config: how to read it.

    Attributes:
        state: differs wherever what is read differs: a digest of stdin, or of the names, sizes and
            times of the files; the revision of a dataset on the hub.

    Raises:
        InputError: there is no such corpus.
    """

    def __init__(self, name: str | Path, config: IndexConfig) -> None:
        self.name = str(name)
        self._config = config
        self._path = Path(name)
        self._files = local_files(self._path, config)
        self.state = _state_of(self._files)
        self._is_of_files = False
        if self.name == STDIN:
            self._stdin = sys.stdin.buffer.read()
            self.state = hashlib.sha256(self._stdin).hexdigest()
        elif (self._path / INFO).exists():
            raise InputError(f"{self.name}: is a datastore, not the texts of one")
        elif self._path.exists():
            self._is_of_files = _format_of(self._path) is None
        elif self._path.suffix in _FILE_SUFFIXES:
            raise InputError(f"{self.name}: no such file")
        else:
            self._builder = self._on_the_hub()
            self.state = str(self._builder.hash)

    def _on_the_hub(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset_builder(self.name)
        # The library does not document what it raises.
        except Exception as error:
            raise InputError(
                f"{self.name}: no such file or folder, and as a dataset of the hub: "
                f"{first_line(error)}"
            ) from error

    def records(self, skipped: list[str]) -> Iterator[Record]:
        """Each record's "text", its "source" (file and row, or path) and its metadata.

        Args:
            skipped: takes a line, with the reason, for each record without a text and each file
                that cannot be read as text.

        Raises:
            InputError: the corpus cannot be read, or no record has the text or the metadata.
        """
        if self._is_of_files:
            yield from self._read_files(skipped)
            return
        column, metadata = self._config.text_column, self._config.metadata
        if "text" in metadata and column != "text":
            raise InputError(f"{self.name}: text is {column}, not metadata")
        place = "stdin" if self.name == STDIN else self._path.name
        missing = {column, *metadata}
        row: dict[str, Any] = {}
        for number, row in enumerate(self._rows(), start=1):
            missing.difference_update(
                [name for name in missing if row.get(name) is not None]
            )
            text = row.get(column)
            if not (isinstance(text, str) and text == _encodable(text)):
                skipped.append(f"{place}:{number}: no text in column {column}")
                continue
            columns = {name: _as_string(row.get(name)) for name in metadata}
            yield {"text": text, "source": f"{place}:{number}", **columns}
        if missing and row:
            raise InputError(
                f"{self.name}: column {min(missing)} is missing or empty, the columns are "
                f"{listed(sorted(row))}: --text-column names another"
            )

    def _read_files(self, skipped: list[str]) -> Iterator[Record]:
        for file in self._files:
            is_alone = file == self._path
            name = file.name if is_alone else file.relative_to(self._path).as_posix()
            source = _encodable(name)
            try:
                text = text_of(file)
            # The libraries do not document what they raise for foreign files.
            except Exception as error:
                skipped.append(f"{source}: {_reason(error)}")
                continue
            if text.strip():
                yield {"text": text, "source": source}
            else:
                skipped.append(f"{source}: empty")

    def _rows(self) -> Iterator[dict[str, Any]]:
        import datasets

        kind = _format_of(self._path)
        rows: Iterable[dict[str, Any]]
        try:
            if self.name == STDIN:
                rows = _rows_of(self._stdin)
            elif kind == "saved":
                rows = datasets.load_from_disk(self.name)
                if isinstance(rows, datasets.DatasetDict):
                    if "train" not in rows:
                        raise ValueError(f"has no split train, has {', '.join(rows)}")
                    rows = rows["train"]
            elif kind:
                # No other builder has this option.
                separator = {"sep": "\t"} if kind == "tsv" else {}
                rows = datasets.load_dataset(
                    "csv" if separator else kind,
                    data_files=glob.escape(self.name),
                    split="train",
                    streaming=True,
                    **separator,
                )
            else:
                rows = self._builder.as_streaming_dataset(split="train")
            yield from rows
        # The library does not document what it raises for foreign files.
        except Exception as error:
            # An empty file.
            if not isinstance(error, StopIteration):
                raise InputError(f"{self.name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return _NOT_TEXT if isinstance(error, UnicodeError) else first_line(error)


def _rows_of(content: bytes) -> Iterator[dict[str, Any]]:
    """Lines of JSON if the content begins with "{", else one text."""
    text = content.decode("utf-8-sig")
    if not text.lstrip().startswith("{"):
        yield {"text": text}
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} must be a JSON object")
            yield row


def _as_string(value: Any) -> str | None:
    if value is None:
        return None
    return _encodable(
        value if isinstance(value, str) else json.dumps(value, default=str)
    )


def _encodable(text: str) -> str:
    """The text with question marks for what UTF-8 cannot express."""
    return text.encode(errors="replace").decode()


def _format_of(path: Path) -> str | None:
    """The builder in `datasets` for this file or saved dataset; None for files of plain text."""
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return "saved"
    if path.is_dir():
        return None
    file = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    return _FORMATS.get(file.suffix)


def text_of(file: Path) -> str:
    """The text in a file; of HTML, what a browser shows, without menus.

    ValueError if it is not text in UTF-8, or in UTF-16 behind its mark.
    """
    with file.open("rb") as beginning:
        is_utf_16 = beginning.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    with file.open(encoding="utf-16" if is_utf_16 else "utf-8-sig") as content:
        # Text has no zero byte, and a binary file is likely to have one this early.
        head = content.read(_HEAD_CHARS)
        if "\0" in head:
            raise ValueError(_NOT_TEXT)
        text = head + content.read()
    return _shown_by_browsers(text) if file.suffix in _HTML else text


def _shown_by_browsers(html: str) -> str:
    with needed_by("HTML"):
        from lxml import etree

    parser = etree.HTMLParser(target=_ShownText(), huge_tree=True)
    parser.feed(html)
    text: str = parser.close()
    # The tags between two paragraphs leave many blank lines.
    return re.sub(r"\n\s*\n", "\n\n", text).strip()


class _ShownText:
    """Collects text from lxml's parser. Without a tree, the time does not depend on its depth."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._hidden = 0

    def start(self, tag: str, attributes: object) -> None:
        self._hidden += tag in _HIDDEN
        self._end_line(tag)

    def end(self, tag: str) -> None:
        self._hidden -= tag in _HIDDEN
        self._end_line(tag)

    def data(self, text: str) -> None:
        if not self._hidden:
            self._pieces.append(text)

    def close(self) -> str:
        return "".join(self._pieces)

    def _end_line(self, tag: str) -> None:
        is_line = self._pieces and self._pieces[-1].endswith("\n")
        if _BLOCK.fullmatch(tag) and not is_line:
            self._pieces.append("\n")


def local_files(path: Path, config: CorpusConfig) -> list[Path]:
    """The file, or the files in a folder at any depth that ``config`` includes, in order.

    Left out are hidden files and folders, Python's caches, symbolic links, and datastores.
    """
    if path.is_file():
        return [path]
    files: list[Path] = []
    for folder, folders, names in os.walk(path):
        if INFO in names:
            folders.clear()
            continue
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "__pycache__"
        ]
        for name in names:
            file = Path(folder, name)
            if name.startswith(".") or file.is_symlink() or not file.is_file():
                continue
            below = file.relative_to(path)
            included = not config.include or _matches(below, config.include)
            if included and not _matches(below, config.exclude):
                files.append(file)
    return sorted(files)


def _matches(path: Path, patterns: Iterable[str]) -> bool:
    return any(
        fnmatchcase(name, pattern)
        for pattern in patterns
        for name in (path.name, path.as_posix())
    )


def _state_of(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        state = f"{file}\n{stat.st_size}\n{stat.st_mtime_ns}\n"
        digest.update(os.fsencode(state))
    return digest.hexdigest()
