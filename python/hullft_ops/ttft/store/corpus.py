"""Reading a corpus record by record: whatever `datasets` reads, and folders of text and HTML."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from hullft_ops._extras import needed_by
from hullft_ops.ttft.store.cutting import PASSAGE_CHARS
from hullft_ops.ttft.store.version import INFO
from hullft_ops.ttft.terminal import listed
from hullft_ops.ttft.validation import (
    InputError,
    first_line,
    input_errors,
    options_class,
)

_FORMATS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_COMPRESSIONS = (".bz2", ".gz", ".xz", ".zst")
_HTML = (".htm", ".html")
# Nobody would adapt to a menu.
_HIDDEN = ("nav", "script", "style", "template")
# The elements that begin a line.
_BLOCKS = (
    "br",
    "dd",
    "div",
    "dt",
    "h1",
    "h2",
    "h3",
    "h4",
    "li",
    "p",
    "pre",
    "td",
    "title",
)
_NOT_TEXT = "not UTF-8 text"
_HEAD_CHARS = 1 << 13

# The text and the source of a record, by name.
Record = dict[str, str]


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

    passage_chars: Annotated[int, Field(ge=4)] = PASSAGE_CHARS
    """Characters of a passage at most. It ends with a definition, a paragraph, a line or a word."""
    min_chars: NonNegativeInt = 16
    """Leave out passages with fewer characters, not counting blanks at both ends."""


class Corpus:
    """What there is to read, as it is when this is made.

    Args:
        name: as in `index_corpus`.
        config: how to read it.

    Attributes:
        state: a digest of the names, sizes and times of the files.

    Raises:
        InputError: there is no such corpus.
    """

    def __init__(self, name: str | Path, config: IndexConfig) -> None:
        self.name = str(name)
        self._config = config
        self._path = Path(name)
        if not self._path.exists():
            raise InputError(f"{self.name}: no such file or folder")
        if (self._path / INFO).exists():
            raise InputError(f"{self.name}: is a datastore, not the texts of one")
        self._files = local_files(self._path, config)
        self.state = _state_of(self._files)

    def records(self, skipped: list[str]) -> Iterator[Record]:
        """Each record's "text" and its "source": file and row, or path.

        Args:
            skipped: takes a line, with the reason, for each record without a text and each file
                that cannot be read as text.

        Raises:
            InputError: the corpus cannot be read, or has no such column.
        """
        if _format_of(self._path) is None:
            yield from self._read_files(skipped)
            return
        column = self._config.text_column
        for number, row in enumerate(self._rows(), start=1):
            place = f"{self._path.name}:{number}"
            if column not in row:
                raise InputError(
                    f"{self.name}: no column {column}, the columns are {listed(sorted(row))}: "
                    "--text-column names another"
                )
            if isinstance(row[column], str):
                yield {"text": row[column], "source": place}
            else:
                skipped.append(f"{place}: no text in column {column}")

    def _read_files(self, skipped: list[str]) -> Iterator[Record]:
        folder = self._path if self._path.is_dir() else self._path.parent
        for file in self._files:
            name = file.relative_to(folder).as_posix()
            source = name.encode(errors="replace").decode()
            try:
                text = _text_of(file)
            # The libraries do not document what they raise for foreign files.
            except Exception as error:
                is_other = isinstance(error, UnicodeError)
                skipped.append(
                    f"{source}: {_NOT_TEXT if is_other else first_line(error)}"
                )
                continue
            if text.strip():
                yield {"text": text, "source": source}
            else:
                skipped.append(f"{source}: empty")

    def _rows(self) -> Iterator[dict[str, Any]]:
        import datasets

        kind = _format_of(self._path)
        rows: Iterable[Any]
        with input_errors(self.name):
            if kind == "saved":
                rows = datasets.load_from_disk(self.name)
                rows = rows["train"] if isinstance(rows, dict) else rows
            else:
                files = glob.escape(self.name)
                rows = datasets.load_dataset(
                    kind, data_files=files, split="train", streaming=True
                )
            yield from rows


def _format_of(path: Path) -> str | None:
    """The builder in `datasets` for this file or saved dataset; None for files of plain text."""
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return "saved"
    file = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    return None if path.is_dir() else _FORMATS.get(file.suffix)


def _text_of(file: Path) -> str:
    """The text in a file; of HTML, what a browser shows, without menus. ValueError if it is not
    UTF-8 text."""
    with file.open(encoding="utf-8-sig") as content:
        # Text has no zero byte, and a binary file is likely to have one this early.
        text = content.read(_HEAD_CHARS)
        if "\0" in text:
            raise ValueError(_NOT_TEXT)
        text += content.read()
    return _shown_by_browsers(text) if file.suffix in _HTML else text


def _shown_by_browsers(html: str) -> str:
    with needed_by("HTML"):
        from lxml import etree
        from lxml.html import HTMLParser, document_fromstring

    parser = HTMLParser(encoding="utf-8", huge_tree=True)
    page = document_fromstring(html.encode(), parser=parser)
    etree.strip_elements(page, *_HIDDEN, with_tail=False)
    for element in page.iter(*_BLOCKS):
        element.text = "\n" + (element.text or "")
        element.tail = "\n" + (element.tail or "")
    # The tags between two paragraphs leave many blank lines.
    return re.sub(r"\n\s*\n", "\n\n", page.text_content()).strip()


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
