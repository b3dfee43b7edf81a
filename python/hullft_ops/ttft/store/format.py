"""The manifest of a datastore, and the journal of a write into it.

Whatever the journal names is on the disk before the journal is. So a process may be killed at any
moment: the next one can finish the write or roll it back.
"""

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hullft_ops.ttft._files import UUID, crc32_of, sync, write_durably

FORMAT = "hullft_ops.datastore"
FORMAT_VERSION = 2
METRIC = "inner_product"
MANIFEST_FILE = "manifest.json"
JOURNAL_FILE = "journal.json"
EMBEDDINGS_FILE = "embeddings.f32"
# A manifest names one file per write: at most some thousands.
_MAX_JSON_BYTES = 1 << 26
_MAX_DIM = 2**31 - 1
_MAX_COUNT = 2**48  # texts; products with the bytes of a vector stay within 64 bits
_MAX_CRC32 = 2**32 - 1
# Files with these whole names are ours, and those of a user are not. They keep the paths in a
# manifest inside the directory. A killed process leaves the last kind.
OWN_DIRECTORIES = re.compile(f"data-{UUID}")
_SHARD_FILE = re.compile(r"texts-[0-9]{5}\.arrow")
_EMBEDDINGS_FILE = re.compile(re.escape(EMBEDDINGS_FILE))
_INDEX_FILE = re.compile(rf"index-{UUID}\.faiss")
OWN_FILES = re.compile("|".join(p.pattern for p in (_SHARD_FILE, _EMBEDDINGS_FILE, _INDEX_FILE)))
OWN_PARTIALS = re.compile(rf"\.(?:manifest|journal)\.json\.{UUID}\.partial")


class VersionError(ValueError):
    """A datastore of another format version."""


@dataclass(frozen=True)
class DataFile:
    """A file in the data directory: its name, bytes and zlib CRC-32, and its rows."""

    file: str
    count: int
    bytes: int
    crc32: int

    @classmethod
    def written(cls, file: Path, count: int) -> "DataFile":
        """The file, which has ``count`` rows. It is on the disk when this returns."""
        sync(file)
        sync(file.parent)
        return cls(file.name, count, file.stat().st_size, crc32_of(file))


@dataclass(frozen=True)
class SearchIndex:
    """How a datastore is searched; the embeddings rank again what inverted lists find.

    ``recall`` is the share of the exact ``recall_k`` neighbours that a search found when the index
    was built, a mean over ``recall_queries`` stored vectors, each without itself.
    """

    kind: str = "flat"  # exact; lists of 8-bit codes are "ivf", of product codes "ivfpq"
    lists: int = 0
    probes: int = 0  # lists that a search reads
    candidates: int = 1  # codes that are ranked again per neighbour
    recall: float = 1.0
    recall_k: int = 0
    recall_queries: int = 0
    file: DataFile | None = None  # None for "flat"

    def __str__(self) -> str:
        if self.kind == "flat":
            return "flat, exact"
        return (
            f"{self.kind}, {self.lists} lists, {self.probes} read, recall@{self.recall_k} "
            f"{self.recall:.3f} on {self.recall_queries} queries"
        )


@dataclass(frozen=True)
class Manifest:
    """What a datastore holds."""

    embedder: str  # name of the embedder that made the vectors
    dim: int  # length of a vector
    count: int  # number of texts, and of vectors
    data: str  # name of the subdirectory that holds the files
    shards: tuple[DataFile, ...]  # the Arrow files of texts and metadata, in order
    embeddings: DataFile
    sources: tuple[dict[str, Any], ...] = ()  # for each shard, what was read and left out
    index: SearchIndex = SearchIndex()
    metric: str = METRIC
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def files(self) -> list[DataFile]:
        """The files in the data directory."""
        return [*self.shards, self.embeddings, *filter(None, [self.index.file])]

    @property
    def checksums(self) -> list[list[int]]:
        """Bytes and CRC-32 of each file with texts, then of the vectors."""
        return [[file.bytes, file.crc32] for file in (*self.shards, self.embeddings)]

    def write(self, directory: Path) -> None:
        """Replace the manifest in ``directory``, in one durable step."""
        write_json_durably(directory / MANIFEST_FILE, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """The manifest in ``directory``, with every field checked.

        Raises:
            FileNotFoundError: there is no such directory.
            ValueError: it holds no datastore, or an unfinished or corrupt one.
            VersionError: it has another format version.
        """
        if not directory.exists():
            raise FileNotFoundError(f"no datastore at {directory}")
        file = directory / MANIFEST_FILE
        refuse_link(file)
        if not file.is_file():
            if (directory / JOURNAL_FILE).is_file():
                raise ValueError(
                    f"{directory} is a datastore that was not finished: "
                    "hullft-ops index --resume finishes it"
                )
            raise ValueError(f"{directory} is not a datastore: it has no {MANIFEST_FILE}")
        values = read_json(file)
        if values.get("format") != FORMAT:
            raise ValueError(f"{directory} is not a datastore: {file} lacks format {FORMAT!r}")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise VersionError(
                f"{directory} has datastore format version {version!r}, this package reads "
                f"version {FORMAT_VERSION}: build it again from its texts"
            )
        return cls(**_checked(_known(cls, values, file), file))


def _checked(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """The values of a manifest, with objects for its files and its index."""
    _check_origin(file, values)
    count, dim, shards, sources = (values[n] for n in ("count", "dim", "shards", "sources"))
    check_count(file, "count", count, 1, _MAX_COUNT)
    _check(values["metric"] == METRIC, file, "metric", repr(METRIC), values["metric"])
    _check(isinstance(shards, list) and shards, file, "shards", "a list of files", shards)
    files = tuple(_data_file(file, "shards", shard, _SHARD_FILE) for shard in shards)
    whole = sum(shard.count for shard in files)
    _check(whole == count, file, "count", "the sum over shards", count)
    few = isinstance(sources, list) and len(sources) <= len(shards)
    _check(few, file, "sources", "a list of objects, at most one a shard", sources)
    for source in sources:
        _check_source(file, source)
    embeddings = _data_file(file, "embeddings", values["embeddings"], _EMBEDDINGS_FILE)
    if (embeddings.count, embeddings.bytes) != (count, count * dim * 4):
        raise ValueError(
            f"{file}: embeddings must be {count} rows in {count * dim * 4} bytes, "
            f"got {embeddings.count} in {embeddings.bytes}"
        )
    index = _search_index(file, values["index"], count)
    found = {"shards": files, "sources": tuple(sources), "embeddings": embeddings, "index": index}
    return values | found


def _search_index(file: Path, values: Any, count: int) -> SearchIndex:
    _check(isinstance(values, dict), file, "index", "an object", values)
    index = SearchIndex(**_known(SearchIndex, values, file))
    kind, recall = index.kind, index.recall
    _check(kind in ("flat", "ivf", "ivfpq"), file, "index.kind", "flat, ivf or ivfpq", kind)
    for name in ("recall_k", "recall_queries"):
        check_count(file, f"index.{name}", getattr(index, name), 0, count)
    share = type(recall) in (int, float) and 0 <= recall <= 1
    _check(share, file, "index.recall", "from 0 to 1", recall)
    if kind == "flat":
        return replace(index, file=None)
    for name, most in (("lists", count), ("probes", index.lists), ("candidates", count)):
        check_count(file, f"index.{name}", getattr(index, name), 1, most)
    found = _data_file(file, "index.file", index.file, _INDEX_FILE)
    _check(found.count == count, file, "index.file.count", str(count), found.count)
    return replace(index, file=found)


@dataclass(frozen=True)
class Journal:
    """A write under way; the first three are a manifest's."""

    embedder: str
    dim: int
    data: str
    settings: dict[str, Any]  # only a write with the same may resume
    embeddings_crc32: int  # of all vectors so far, earlier shards included
    source: dict[str, Any] | None = None  # the report on the texts, once they are written
    shard: DataFile | None = None  # the file of the texts, once they are written
    embedded: int = 0  # how many of the texts have a vector on the disk

    def write(self, directory: Path) -> None:
        """Replace the journal in ``directory``, in one durable step."""
        write_json_durably(directory / JOURNAL_FILE, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> "Journal | None":
        """The journal in ``directory``, or None if no write is under way. ValueError if corrupt."""
        file = directory / JOURNAL_FILE
        refuse_link(file)
        if not file.is_file():
            return None
        values = _known(cls, read_json(file), file)
        _check_origin(file, values)
        settings, shard = values["settings"], values["shard"]
        _check(isinstance(settings, dict), file, "settings", "an object", settings)
        if shard is not None:
            shard = _data_file(file, "shard", shard, _SHARD_FILE)
        if values["source"] is not None:
            _check_source(file, values["source"])
        check_count(file, "embedded", values["embedded"], 0, shard.count if shard else 0)
        check_count(file, "embeddings_crc32", values["embeddings_crc32"], 0, _MAX_CRC32)
        return cls(**values | {"shard": shard})


def write_json_durably(file: Path, values: dict[str, Any]) -> None:
    """Replace ``file`` with the object, in one durable step."""
    write_durably(file, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError if there is none."""
    size = file.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"{file} must have at most {_MAX_JSON_BYTES} bytes, has {size}")
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object, holds {type(values).__name__}")
    return values


def _check(sound: object, file: Path, name: str, wanted: str, got: object) -> None:
    if not sound:
        raise ValueError(f"{file}: {name} must be {wanted}, got {got!r}")


def _check_origin(file: Path, values: dict[str, Any]) -> None:
    _check(isinstance(values["embedder"], str), file, "embedder", "a string", values["embedder"])
    check_count(file, "dim", values["dim"], 1, _MAX_DIM)
    _check_name(file, "data", values["data"], OWN_DIRECTORIES)


def check_count(file: Path, name: str, value: Any, least: int, most: int) -> None:
    """Refuse anything but an integer from ``least`` to ``most``."""
    wanted = "a positive integer" if least else "an integer of 0 or more"
    _check(type(value) is int and value >= least, file, name, wanted, value)
    _check(value <= most, file, name, f"at most {most}", value)


def _check_name(file: Path, field: str, name: Any, pattern: re.Pattern[str]) -> None:
    ours = isinstance(name, str) and pattern.fullmatch(name)
    _check(ours, file, field, f"named like {pattern.pattern}", name)


def _check_source(file: Path, source: Any) -> None:
    # Of texts that a program gave.
    if source == {}:
        return
    known = isinstance(source, dict) and isinstance(source.get("settings"), dict)
    _check(known, file, "sources", "objects with settings", source)
    named = isinstance(source["settings"].get("source"), str)
    _check(named, file, "sources.settings.source", "a string", source)
    # Absent before there were folders of mixed files.
    values = {"binary": 0, "binary_named": []} | source
    for name in ("records", "malformed", "near_empty", "repeated", "binary"):
        check_count(file, f"sources.{name}", values.get(name), 0, _MAX_COUNT)
    for name in ("malformed_named", "binary_named"):
        lines = values.get(name)
        strings = isinstance(lines, list) and all(isinstance(line, str) for line in lines)
        _check(strings, file, f"sources.{name}", "strings", lines)


def _data_file(source: Path, field: str, values: Any, pattern: re.Pattern[str]) -> DataFile:
    _check(isinstance(values, dict), source, field, "an object", values)
    found = DataFile(**_known(DataFile, values, source))
    _check_name(source, field, found.file, pattern)
    for name, most in (("count", _MAX_COUNT), ("bytes", 2**63 - 1), ("crc32", _MAX_CRC32)):
        check_count(source, f"{field}.{name}", getattr(found, name), 0, most)
    return found


def _known(kind: type, values: dict[str, Any], file: Path) -> dict[str, Any]:
    """The values; a ValueError if their names are not the fields of ``kind``."""
    names = {field.name for field in fields(kind)}
    if values.keys() != names:
        odd = sorted(values.keys() ^ names)
        raise ValueError(f"{file}: must have the fields {sorted(names)}, differs in {odd}")
    return values


def own_entries(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """This program's files in ``folder``, by one of its ``OWN_`` names; never a link."""
    is_kind = Path.is_dir if names is OWN_DIRECTORIES else Path.is_file
    return [
        entry
        for entry in folder.iterdir()
        if names.fullmatch(entry.name) and is_kind(entry) and not entry.is_symlink()
    ]


def remove_all_but(directory: Path, manifest: Manifest | None) -> None:
    """Remove this program's files from a datastore, except those that the manifest names."""
    kept = [Path(manifest.data, file.file) for file in manifest.files] if manifest else []
    for partial in own_entries(directory, OWN_PARTIALS):
        partial.unlink()
    for data in own_entries(directory, OWN_DIRECTORIES):
        for file in own_entries(data, OWN_FILES):
            if file.relative_to(directory) not in kept:
                file.unlink()
        if not any(data.iterdir()):
            data.rmdir()


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link, which could lead out of the datastore's directory."""
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link: a folder's files must be its own")


def check_file(
    function: str, folder: Path, wanted: DataFile, *, checksum: bool = True, longer: bool = False
) -> None:
    """Refuse a file that is missing, a link, or not of the recorded size and checksum.

    A ``longer`` file passes; the rest of it is not checked. Messages begin with ``function``.
    """
    file = folder / wanted.file
    for path in (folder, file):
        refuse_link(path)
    size = file.stat().st_size if file.is_file() else None
    if size is None or size < wanted.bytes or (size > wanted.bytes and not longer):
        raise ValueError(
            f"{function}: {file} is missing or corrupt: it must have {wanted.bytes} bytes, "
            f"has {'none' if size is None else size}"
        )
    if checksum and crc32_of(file, wanted.bytes) != wanted.crc32:
        raise ValueError(f"{function}: {file} is missing or corrupt: its checksum is wrong")
