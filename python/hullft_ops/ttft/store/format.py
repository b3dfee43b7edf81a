"""The manifest of a datastore, the journal of a write into it, and how such files are read.

Whatever the journal names is on the disk before the journal is. So a process may be
killed at any moment: the next one can finish the write or roll it back.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from hullft_ops.ttft._files import UUID, crc32_of, sync, write_durably

MANIFEST_FILE = "manifest.json"
JOURNAL_FILE = "journal.json"
EMBEDDINGS_FILE = "embeddings.f32"
# A manifest names one file per write: at most some thousands.
_MAX_JSON_BYTES = 1 << 26
_MAX_COUNT = 2**48  # texts; products with the bytes of a vector stay within 64 bits
# Files with these whole names are ours, and those of a user are not. They keep the paths in a
# manifest inside the directory. A killed process leaves the last kind.
OWN_DIRECTORIES = re.compile(f"data-{UUID}")
_SHARD_FILE = re.compile(r"texts-[0-9]{5}\.arrow")
_EMBEDDINGS_FILE = re.compile(re.escape(EMBEDDINGS_FILE))
_INDEX_FILE = re.compile(rf"index-{UUID}\.faiss")
OWN_FILES = re.compile(
    "|".join(p.pattern for p in (_SHARD_FILE, _EMBEDDINGS_FILE, _INDEX_FILE))
)
OWN_PARTIALS = re.compile(rf"\.(?:manifest|journal)\.json\.{UUID}\.partial")

# Types of fields: `parsed` accepts integers in a range, and strings and files whose name matches.
# It accepts any number that is not negative for a float; beyond the largest, sums become infinite.
_LARGEST = 1e100
_Count = Annotated[int, range(_MAX_COUNT + 1)]
_Dim = Annotated[int, range(1, 2**31)]
_Directory = Annotated[str, OWN_DIRECTORIES]
_Strings = list[Annotated[str, "strings"]]
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class DataFile:
    """A file in the data directory: its name, bytes and zlib CRC-32, and its rows."""

    file: str
    count: _Count
    bytes: Annotated[int, range(2**63)]
    crc32: Annotated[int, range(2**32)]

    @classmethod
    def written(cls, file: Path, count: int) -> "DataFile":
        """The file, which has ``count`` rows. It is on the disk when this returns."""
        sync(file)
        sync(file.parent)
        return cls(file.name, count, file.stat().st_size, crc32_of(file))


@dataclass
class Counts:
    """How many records of a source were read, and what was left out and why."""

    records: _Count = 0  # lines, rows or files, including malformed ones
    malformed: _Count = 0  # records without a usable text
    malformed_named: _Strings = field(
        default_factory=list
    )  # the first, with what is wrong
    binary: _Count = 0  # files of a folder that are not UTF-8 text; they are no records
    binary_named: _Strings = field(default_factory=list)  # the first
    near_empty: _Count = 0  # texts with too few characters
    repeated: _Count = 0  # exact repetitions of a text


@dataclass(frozen=True)
class SearchIndex:
    """How a datastore is searched; the embeddings rank again what inverted lists find.

    ``recall`` is the share of the exact ``recall_k`` neighbours that a search found when the index
    was built, a mean over ``recall_queries`` stored vectors, each without itself.
    """

    # "flat" is exact; lists of 8-bit codes are "ivf", of product codes "ivfpq"
    kind: Annotated[str, ("flat", "ivf", "ivfpq")] = "flat"
    lists: _Count = 0
    probes: _Count = 0  # lists that a search reads
    candidates: _Count = 1  # codes that are ranked again per neighbour
    recall: Annotated[float, "from 0 to 1"] = 1.0
    recall_k: _Count = 0
    recall_queries: _Count = 0
    file: Annotated[DataFile, _INDEX_FILE] | None = None  # None for "flat"

    def __str__(self) -> str:
        if self.kind == "flat":
            return "flat, exact"
        return (
            f"{self.kind}, {self.lists} lists, {self.probes} read, recall@{self.recall_k} "
            f"{self.recall:.3f} on {self.recall_queries} queries"
        )


@dataclass(frozen=True)
class FolderManifest:
    """What a folder holds. The subclasses add the fields, and how messages name the content."""

    format, format_version = "", 0
    _what = _none = _version = ""

    def write(self, folder: Path) -> None:
        """Replace the manifest in ``folder``, in one durable step."""
        write_json_durably(folder / MANIFEST_FILE, asdict(self))

    @classmethod
    def values(cls, folder: Path) -> dict[str, Any]:
        """The object in the manifest of ``folder``, of any format version.

        FileNotFoundError if there is no such folder, ValueError if it has no such manifest.
        """
        if not folder.exists():
            raise FileNotFoundError(f"no {cls._what} at {folder}")
        file = folder / MANIFEST_FILE
        values = read_json(file)
        if values is None and (folder / JOURNAL_FILE).is_file():
            raise ValueError(
                f"{folder} is not finished: hullft-ops index --resume finishes it"
            )
        if values is None:
            raise ValueError(f"{folder} {cls._none}: it has no {MANIFEST_FILE}")
        if values.get("format") != cls.format:
            raise ValueError(
                f"{folder} {cls._none}: {file} lacks format {cls.format!r}"
            )
        return values

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in ``folder``. Raises as `values`, and a ValueError if a field is wrong or
        the format has another version."""
        values = cls.values(folder)
        version, reads = values.get("format_version"), cls.format_version
        if version != reads:
            has = f"{folder} has {cls._version.format(version)}"
            raise ValueError(
                f"{has}, this package reads version {reads}: build it again"
            )
        return parsed(cls, values, folder / MANIFEST_FILE)


@dataclass(frozen=True)
class Manifest(FolderManifest):
    """What a datastore holds."""

    _what, _none = "datastore", "is not a datastore"
    _version = "datastore format version {!r}"

    embedder: str  # name of the embedder that made the vectors
    dim: _Dim  # length of a vector
    count: Annotated[int, range(1, _MAX_COUNT + 1)]  # number of texts, and of vectors
    data: _Directory  # name of the subdirectory that holds the files
    # the Arrow files of texts and metadata, in order
    shards: Annotated[tuple[Annotated[DataFile, _SHARD_FILE], ...], "a list of files"]
    embeddings: Annotated[DataFile, _EMBEDDINGS_FILE]
    sources: tuple[
        dict[str, Any], ...
    ] = ()  # for each shard, what was read and left out
    index: SearchIndex = SearchIndex()
    metric: str = "inner_product"
    format: str = "hullft_ops.datastore"
    format_version: int = 2

    def __post_init__(self) -> None:
        count, vectors, index = self.count, self.embeddings, self.index
        _check(self.metric == "inner_product", "metric", "'inner_product'", self.metric)
        _check(
            sum(s.count for s in self.shards) == count,
            "count",
            "the sum over shards",
            count,
        )
        size = count * self.dim * 4
        if (vectors.count, vectors.bytes) != (count, size):
            got = f"{vectors.count} in {vectors.bytes}"
            raise ValueError(
                f"embeddings must be {count} rows in {size} bytes, got {got}"
            )
        few = len(self.sources) <= len(self.shards)
        _check(few, "sources", "a list of objects, at most one a shard", self.sources)
        for source in self.sources:
            _check_source(source)
        _check(0 <= index.recall <= 1, "index.recall", "from 0 to 1", index.recall)
        rows, wanted = (
            index.file and index.file.count,
            None if index.kind == "flat" else count,
        )
        _check(rows == wanted, "index.file.count", str(wanted), rows)
        if index.kind != "flat":
            for name, most in (
                ("lists", count),
                ("probes", index.lists),
                ("candidates", count),
            ):
                _check_count(f"index.{name}", getattr(index, name), range(1, most + 1))

    @property
    def files(self) -> list[DataFile]:
        """The files in the data directory."""
        return [*self.shards, self.embeddings, *filter(None, [self.index.file])]

    @property
    def checksums(self) -> list[list[int]]:
        """Bytes and CRC-32 of each file with texts, then of the vectors."""
        return [[file.bytes, file.crc32] for file in (*self.shards, self.embeddings)]


@dataclass(frozen=True)
class Journal:
    """A write under way; the first three are a manifest's."""

    embedder: str
    dim: _Dim
    data: _Directory
    settings: dict[str, Any]  # only a write with the same may resume
    embeddings_crc32: Annotated[
        int, range(2**32)
    ]  # of all vectors so far, earlier shards included
    source: dict[str, Any] | None = (
        None  # the report on the texts, once they are written
    )
    shard: Annotated[DataFile, _SHARD_FILE] | None = (
        None  # the texts' file, once it is written
    )
    embedded: _Count = 0  # how many of the texts have a vector on the disk

    def __post_init__(self) -> None:
        _check_count(
            "embedded",
            self.embedded,
            range((self.shard.count if self.shard else 0) + 1),
        )
        _check_source(self.source or {})

    def write(self, directory: Path) -> None:
        """Replace the journal in ``directory``, in one durable step."""
        write_json_durably(directory / JOURNAL_FILE, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> "Journal | None":
        """The journal in ``directory``, or None if no write is under way. ValueError if corrupt."""
        file = directory / JOURNAL_FILE
        values = read_json(file)
        return None if values is None else parsed(cls, values, file)


def write_json_durably(file: Path, values: dict[str, Any]) -> None:
    """Replace ``file`` with the object, in one durable step."""
    write_durably(file, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None without a file. ValueError if it holds no object."""
    refuse_link(file)
    if not file.is_file():
        return None
    size = file.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(
            f"{file} must have at most {_MAX_JSON_BYTES} bytes, has {size}"
        )
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{file} must hold a JSON object, holds {type(values).__name__}"
        )
    return values


def parsed(kind: type[_Parsed], values: dict[str, Any], file: Path | str) -> _Parsed:
    """The object from ``file`` as a dataclass. ValueError if a field is missing, odd or wrong."""
    with prefixed(f"{file}"):
        found: _Parsed = _parsed(kind, values, "")
        return found


def _parsed(kind: Any, value: Any, name: str) -> Any:
    kind, form = get_args(kind) if get_origin(kind) is Annotated else (kind, None)
    origin, inner = get_origin(kind) or kind, [*get_args(kind), None][0]
    if origin in (Union, UnionType):
        return None if value is None else _parsed(inner, value, name)
    if origin in (list, tuple):
        sound, wanted = (
            isinstance(value, list) and (value or not form),
            form or "a list of objects",
        )
        _check(sound, name, wanted, value)
        return origin(_parsed(inner, one, name) for one in value)
    if isinstance(kind, type) and is_dataclass(kind):
        _check(isinstance(value, dict), name, "an object", value)
        hints = get_type_hints(kind, include_extras=True)
        if odd := sorted(value.keys() ^ hints.keys()):
            raise ValueError(f"must have the fields {sorted(hints)}, differs in {odd}")
        prefix = f"{name}." if name else ""
        value = kind(
            **{n: _parsed(hint, value[n], prefix + n) for n, hint in hints.items()}
        )
    elif origin is int:
        _check_count(name, value, form or range(2**63))
    else:
        wanted = form if isinstance(form, str) else _NAMES[origin]
        is_number = type(value) in (int, float) and 0 <= value < _LARGEST
        _check(
            is_number if origin is float else type(value) is origin, name, wanted, value
        )
    if origin is dict and (of := get_args(kind)[1]) is not Any:
        value = {key: _parsed(of, one, f"{name}.{key}") for key, one in value.items()}
    if isinstance(form, tuple):
        _check(value in form, name, f"{', '.join(form[:-1])} or {form[-1]}", value)
    if isinstance(form, re.Pattern):
        title = value.file if isinstance(value, DataFile) else value
        _check(form.fullmatch(title), name, f"named like {form.pattern}", title)
    return value


_NAMES = {
    str: "a string",
    bool: "true or false",
    dict: "an object",
    float: "a number in 0..1e100",
}


def _check(sound: object, name: str, wanted: str, got: object) -> None:
    if not sound:
        raise ValueError(f"{name} must be {wanted}, got {got!r}")


def _check_count(name: str, value: Any, limits: range) -> None:
    wanted = "a positive integer" if limits.start else "an integer of 0 or more"
    _check(type(value) is int and value >= limits.start, name, wanted, value)
    _check(value < limits.stop, name, f"at most {limits.stop - 1}", value)


def _check_source(source: dict[str, Any]) -> None:
    # Empty if a program gave the texts.
    if source:
        # Binary files are absent before there were folders of mixed files.
        counts = {"settings": None, "binary": 0, "binary_named": []} | source
        settings: Any = counts.pop("settings")
        _check(isinstance(settings, dict), "sources", "objects with settings", source)
        _parsed(str, settings.get("source"), "sources.settings.source")
        _parsed(Counts, counts, "sources")


def own_entries(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """This program's files in ``folder``, by one of its ``OWN_`` names; never a link."""
    is_kind = Path.is_dir if names is OWN_DIRECTORIES else Path.is_file
    found = [entry for entry in folder.iterdir() if names.fullmatch(entry.name)]
    return [entry for entry in found if is_kind(entry) and not entry.is_symlink()]


def remove_all_but(directory: Path, manifest: Manifest | None) -> None:
    """Remove this program's files from a datastore, but for those of a manifest with texts."""
    kept: list[Path] = []
    if manifest and manifest.count:
        kept = [directory / manifest.data / file.file for file in manifest.files]
    for partial in own_entries(directory, OWN_PARTIALS):
        partial.unlink()
    for data in own_entries(directory, OWN_DIRECTORIES):
        for file in own_entries(data, OWN_FILES):
            if file not in kept:
                file.unlink()
        if not any(data.iterdir()):
            data.rmdir()


@contextmanager
def prefixed(what: str) -> Iterator[None]:
    """Let the message of a FileNotFoundError or ValueError begin with ``what``."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
        raise kind(f"{what}: {error}") from error


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link, which could lead out of the datastore's directory."""
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link: a folder's files must be its own")


def check_file(
    folder: Path, wanted: DataFile, *, checksum: bool = True, longer: bool = False
) -> None:
    """Refuse a file that is missing, a link, or not of the recorded size and checksum.

    A ``longer`` file passes; the rest of it is not checked.
    """
    file = folder / wanted.file
    corrupt = f"{file} is missing or corrupt"
    for path in (folder, file):
        refuse_link(path)
    size = file.stat().st_size if file.is_file() else None
    if size is None or size < wanted.bytes or (size > wanted.bytes and not longer):
        raise ValueError(
            f"{corrupt}: it must have {wanted.bytes} bytes, has {size or 'none'}"
        )
    if checksum and crc32_of(file, wanted.bytes) != wanted.crc32:
        raise ValueError(f"{corrupt}: its checksum is wrong")
