"""Reading a corpus record by record: whatever `datasets` reads, and folders of text and HTML."""

import bz2
import glob
import gzip
import hashlib
import json
import lzma
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from hullft_ops._extras import needed_by
from hullft_ops.ttft.errors import InputError, first_line
from hullft_ops.ttft.files import MARKER
from hullft_ops.ttft.validation import options

STDIN = "-"
_FORMATS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_COMPRESSIONS = (".bz2", ".gz", ".xz", ".zst")
# What opens the compressed files in a folder.
_OPENERS: dict[str, Callable[..., Any]] = {
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".xz": lzma.open,
}
_HTML = (".htm", ".html")
# A CSS selector of the elements after which a line ends.
_LINES = "br, dd, div, dt, h1, h2, h3, h4, h5, h6, li, p, td, th, title"
_NOT_TEXT = "not UTF-8 text"
_HEAD_CHARS = 1 << 13

# Columns of a record, by name.
Record = dict[str, Any]


@options
class FilePatterns:
    """Which files of a folder are read."""

    include: tuple[str, ...] = ()
    """In a folder, read only files whose name, or path below the folder, matches one of these
    patterns. ``*`` matches slashes too."""
    exclude: tuple[str, ...] = ()
    """In a folder, leave out files that match one of these patterns."""


@options
class IndexConfig(FilePatterns):
    """How a corpus is read, cut into passages and searched."""

    text_column: str = "text"
    """The column that holds the text."""
    metadata: tuple[str, ...] = ()
    """Columns to keep beside each text."""
    chunk_tokens: NonNegativeInt | None = None
    """Length of a passage in the embedder's tokens: None for as many as the embedder reads, 0 for
    whole records."""
    overlap: NonNegativeInt = 0
    """Tokens that a passage shares with the one before it."""
    min_chars: NonNegativeInt = 16
    """Leave out passages with fewer characters, not counting blanks at both ends."""
    exact_up_to: NonNegativeInt = 100_000
    """Search is exact up to this many passages; beyond, it reads some of many inverted lists."""


def read_records(
    corpus: str | Path, config: IndexConfig, skipped: list[str]
) -> Iterator[Record]:
    """Each record's "text", its "source" (file and row, or path) and its metadata.

    Args:
        corpus: a folder of text files, a file, "-" for stdin, or the name of a dataset on the hub.
        skipped: takes a line, with the reason, for each record without a text and each file that
            cannot be read as text.

    Raises:
        InputError: the corpus cannot be read, or no record has the metadata.
    """
    path = Path(corpus)
    if is_of_files(path):
        yield from _read_files(path, config, skipped)
        return
    if "text" in config.metadata and config.text_column != "text":
        raise InputError(f"{corpus}: text is {config.text_column}, not metadata")
    missing = set(config.metadata)
    for number, row in enumerate(_rows(str(corpus)), start=1):
        source = f"{'stdin' if str(corpus) == STDIN else path.name}:{number}"
        text = row.get(config.text_column)
        if not isinstance(text, str):
            skipped.append(f"{source}: no string {config.text_column!r}")
            continue
        columns = {column: row.get(column) for column in config.metadata}
        missing -= {column for column in missing if columns[column] is not None}
        yield {"text": text, "source": source, **columns}
    if missing:
        raise InputError(f"{corpus}: no record has the metadata {min(missing)}")


def is_of_files(path: Path) -> bool:
    """Whether a record of the corpus is a whole file, not a line or a row of one."""
    return path.exists() and not _format_of(path)


def _read_files(
    path: Path, config: IndexConfig, skipped: list[str]
) -> Iterator[Record]:
    for file in local_files(path, config):
        name = file.name if file == path else file.relative_to(path).as_posix()
        # Not every name is UTF-8.
        source = name.encode(errors="replace").decode()
        try:
            text = text_of(file)
        # The libraries do not document what they raise for foreign files.
        except Exception as error:
            is_binary = isinstance(error, UnicodeError)
            skipped.append(f"{source}: {_NOT_TEXT if is_binary else first_line(error)}")
            continue
        if text.strip():
            yield {"text": text, "source": source}
        else:
            skipped.append(f"{source}: empty")


def _format_of(path: Path) -> str | None:
    """The builder in `datasets` for this file or saved dataset; None for files of plain text."""
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return "saved"
    return None if path.is_dir() else _FORMATS.get(_suffix(path))


def _suffix(path: Path) -> str:
    """The last suffix of a file's name but that of a compression."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSIONS]
    return suffixes[-1] if suffixes else ""


def _rows(name: str) -> Iterator[Record]:
    import datasets

    builder = _format_of(Path(name))
    subject = name
    rows: Iterable[Record]
    try:
        if name == STDIN:
            rows = _stdin_rows()
        elif builder == "saved":
            rows = datasets.load_from_disk(name)
        elif builder:
            rows = datasets.load_dataset(
                builder, data_files=glob.escape(name), split="train", streaming=True
            )
        else:
            subject = f"{name}: no such file or folder, and as a dataset of the hub"
            rows = datasets.load_dataset(name, split="train", streaming=True)
        yield from rows
    # The library does not document what it raises for foreign files.
    except Exception as error:
        raise InputError(f"{subject}: {first_line(error)}") from error


def _stdin_rows() -> Iterator[Record]:
    """Lines of JSON if stdin begins with "{", else one text."""
    content = sys.stdin.buffer.read().decode("utf-8-sig")
    if not content.lstrip().startswith("{"):
        yield {"text": content}
        return
    for line in content.split("\n"):
        if line.strip():
            yield json.loads(line)


def text_of(file: Path) -> str:
    """The text in a file, which may be compressed; of HTML, what a browser shows.

    ValueError if it is not text in UTF-8.
    """
    open_text = _OPENERS.get(file.suffix, open)
    with open_text(file, "rt", encoding="utf-8-sig") as content:
        # Text has no zero byte, and a binary file is likely to have one this early.
        head = content.read(_HEAD_CHARS)
        if "\0" in head:
            raise ValueError(_NOT_TEXT)
        text: str = head + content.read()
    return _shown_by_browsers(text) if _suffix(file) in _HTML else text


def _shown_by_browsers(html: str) -> str:
    with needed_by("HTML"):
        from bs4 import BeautifulSoup

    page = BeautifulSoup(html, "html.parser")
    for element in page.select(_LINES):
        element.append("\n")
    # The tags between two paragraphs leave many blank lines.
    return re.sub(r"\n\s*\n", "\n\n", page.get_text()).strip()


def local_files(path: Path, config: FilePatterns) -> list[Path]:
    """The file, or the files in a folder at any depth that ``config`` includes, in order.

    Left out are hidden files and folders, symbolic links, and folders that this package wrote.
    """
    if path.is_file():
        return [path]
    files: list[Path] = []
    for folder, folders, names in os.walk(path):
        if MARKER in names:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
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


def state_of(files: Iterable[Path]) -> str:
    """A digest of the names, sizes and times of the files."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        state = f"{file}\n{stat.st_size}\n{stat.st_mtime_ns}\n"
        digest.update(os.fsencode(state))
    return digest.hexdigest()
