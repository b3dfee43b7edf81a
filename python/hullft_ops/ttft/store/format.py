"""The file that says what a datastore's directory holds."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hullft_ops.ttft._files import UUID, write_durably

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
# Every file name in a manifest has one of these forms, which keeps its paths inside the directory.
_DATA_DIRECTORY = re.compile(r"data-[0-9a-f]{1,32}")
_SHARD_FILE = re.compile(r"texts-[0-9]{5}\.arrow")
_INDEX_FILE = re.compile(r"index-[0-9a-f]{1,32}\.faiss")
# A write may remove only files with these whole names; any other file belongs to the user. A killed
# process leaves the first kind.
OWN_PARTIALS = re.compile(rf"\.(?:manifest|journal)\.json\.{UUID}\.partial")
OWN_DIRECTORIES = re.compile(f"data-{UUID}")
OWN_FILES = re.compile(rf"embeddings\.f32|texts-[0-9]{{5}}\.arrow|index-{UUID}\.faiss")


class VersionError(ValueError):
    """A datastore of a version that this package cannot read."""


@dataclass(frozen=True)
class DataFile:
    """A file in the data directory: its name, bytes and zlib CRC-32, and its rows."""

    file: str
    count: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class SearchIndex:
    """How a datastore is searched, and the recall that was measured when it was built.

    Attributes:
        kind: "flat" (exact, over the embeddings themselves), "ivf" (inverted lists of 8-bit
            codes) or "ivfpq" (inverted lists of product-quantised codes). With both kinds of
            lists, the embeddings rank the candidates again.
        lists: number of inverted lists; 0 for "flat".
        probes: how many lists a search reads.
        candidates: how many codes are ranked again per neighbour.
        recall: share of the exact ``recall_k`` neighbours that a search finds, a mean over
            ``recall_queries`` stored vectors, each without itself; 1 for "flat".
        file: the index; None for "flat".
    """

    kind: str = "flat"
    lists: int = 0
    probes: int = 0
    candidates: int = 1
    recall: float = 1.0
    recall_k: int = 0
    recall_queries: int = 0
    file: DataFile | None = None

    def __str__(self) -> str:
        if self.kind == "flat":
            return "flat, exact"
        return (
            f"{self.kind}, {self.lists} lists, {self.probes} read, recall@{self.recall_k} "
            f"{self.recall:.3f} on {self.recall_queries} queries"
        )


@dataclass(frozen=True)
class Manifest:
    """What a datastore holds.

    Attributes:
        embedder: name of the embedder that made the vectors.
        dim: length of a vector.
        count: number of texts, and of vectors.
        data: name of the subdirectory that holds the files.
        shards: the Arrow files of texts and metadata, in order.
        embeddings: the file of the vectors.
        sources: for each shard, what was read and what was left out.
        index: how the datastore is searched.
        metric: how vectors are compared: "inner_product".
        format: "hullft_ops.datastore".
        format_version: layout of the directory: 2.
    """

    embedder: str
    dim: int
    count: int
    data: str
    shards: tuple[DataFile, ...]
    embeddings: DataFile
    sources: tuple[dict[str, Any], ...] = ()
    index: SearchIndex = SearchIndex()
    metric: str = METRIC
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

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
            ValueError: it is not a datastore, or an unfinished or corrupt one.
            VersionError: the datastore has another format version.
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
        return cls._from_values(values, file)

    @classmethod
    def _from_values(cls, values: dict[str, Any], file: Path) -> "Manifest":
        manifest = cls(**_known(cls, values, file))
        if not isinstance(manifest.embedder, str):
            raise ValueError(f"{file}: embedder must be a string, got {manifest.embedder!r}")
        check_count(file, "dim", manifest.dim, 1, _MAX_DIM)
        check_count(file, "count", manifest.count, 1, _MAX_COUNT)
        check_data_directory(file, manifest.data)
        if manifest.metric != METRIC:
            raise ValueError(f"{file}: metric must be {METRIC!r}, got {manifest.metric!r}")
        shards = manifest.shards
        if not isinstance(shards, list) or not shards:
            raise ValueError(f"{file}: shards must be a list of files, got {shards!r}")
        checked = tuple(data_file(file, "shards", shard, _SHARD_FILE) for shard in shards)
        if sum(shard.count for shard in checked) != manifest.count:
            raise ValueError(f"{file}: count must be the sum over shards, got {manifest.count}")
        sources = manifest.sources
        if not isinstance(sources, list) or len(sources) > len(shards):
            raise ValueError(
                f"{file}: sources must be a list of objects, at most one a shard, got {sources!r}"
            )
        for source in sources:
            check_source(file, source)
        embeddings = data_file(
            file, "embeddings", manifest.embeddings, re.compile(re.escape(EMBEDDINGS_FILE))
        )
        wanted = manifest.count * manifest.dim * 4
        if (embeddings.count, embeddings.bytes) != (manifest.count, wanted):
            raise ValueError(
                f"{file}: embeddings must be {manifest.count} rows in {wanted} bytes, "
                f"got {embeddings.count} in {embeddings.bytes}"
            )
        return replace(
            manifest,
            shards=checked,
            sources=tuple(sources),
            embeddings=embeddings,
            index=_search_index(file, manifest.index, manifest.count),
        )


def write_json_durably(file: Path, values: dict[str, Any]) -> None:
    """Replace ``file`` with the object, in one durable step."""
    write_durably(file, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(file: Path) -> dict[str, Any]:
    """The object in a manifest or journal. ValueError if there is none."""
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


def own_entries(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """This program's files in ``folder``, by one of its ``OWN_`` names; never a link."""
    is_kind = Path.is_dir if names is OWN_DIRECTORIES else Path.is_file
    return [
        entry
        for entry in folder.iterdir()
        if names.fullmatch(entry.name) and is_kind(entry) and not entry.is_symlink()
    ]


def remove_data(data: Path) -> None:
    """Remove this program's files from a data directory, and the directory if nothing is left."""
    for file in own_entries(data, OWN_FILES):
        file.unlink()
    if not any(data.iterdir()):
        data.rmdir()


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link, which could lead out of the datastore's directory."""
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link: a folder's files must be its own")


def check_source(file: Path, source: object) -> None:
    """Refuse anything but a report on a source: an empty object, or what `index_corpus` writes."""
    if source == {}:
        return
    if not isinstance(source, dict) or not isinstance(source.get("settings"), dict):
        raise ValueError(f"{file}: sources must be objects with settings, got {source!r}")
    if not isinstance(source["settings"].get("source"), str):
        raise ValueError(f"{file}: sources.settings.source must be a string, got {source!r}")
    for name in ("records", "malformed", "near_empty", "repeated"):
        check_count(file, f"sources.{name}", source.get(name), 0, _MAX_COUNT)
    named = source.get("malformed_named")
    if not isinstance(named, list) or not all(isinstance(line, str) for line in named):
        raise ValueError(f"{file}: sources.malformed_named must be strings, got {named!r}")


def check_data_directory(file: Path, name: object) -> None:
    """Refuse a data directory in ``file`` whose name is not one of ours."""
    _check_name(file, "data", name, _DATA_DIRECTORY, "data-0a1b")


def _check_name(file: Path, field: str, name: object, pattern: re.Pattern[str], like: str) -> None:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(f"{file}: {field} must be named like {like}, got {name!r}")


def data_file(
    source: Path, field: str, values: object, pattern: re.Pattern[str] = _SHARD_FILE
) -> DataFile:
    """The data file that a JSON object describes. ValueError unless every part is sound."""
    if not isinstance(values, dict):
        raise ValueError(f"{source}: {field} must be an object, got {values!r}")
    found = DataFile(**_known(DataFile, values, source))
    _check_name(source, field, found.file, pattern, pattern.pattern)
    for name, most in (("count", _MAX_COUNT), ("bytes", 2**63 - 1), ("crc32", _MAX_CRC32)):
        check_count(source, f"{field}.{name}", getattr(found, name), 0, most)
    return found


def _search_index(file: Path, values: object, count: int) -> SearchIndex:
    if not isinstance(values, dict):
        raise ValueError(f"{file}: index must be an object, got {values!r}")
    index = SearchIndex(**_known(SearchIndex, values, file))
    if index.kind not in ("flat", "ivf", "ivfpq"):
        raise ValueError(f"{file}: index.kind must be flat, ivf or ivfpq, got {index.kind!r}")
    for name in ("recall_k", "recall_queries"):
        check_count(file, f"index.{name}", getattr(index, name), 0, count)
    if type(index.recall) not in (int, float) or not 0 <= index.recall <= 1:
        raise ValueError(f"{file}: index.recall must be from 0 to 1, got {index.recall!r}")
    if index.kind == "flat":
        return replace(index, file=None)
    check_count(file, "index.lists", index.lists, 1, count)
    check_count(file, "index.probes", index.probes, 1, index.lists)
    check_count(file, "index.candidates", index.candidates, 1, count)
    found = data_file(file, "index.file", index.file, _INDEX_FILE)
    if found.count != count:
        raise ValueError(f"{file}: index.file.count must be {count}, got {found.count}")
    return replace(index, file=found)


def _known(kind: type, values: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return ``values``; refuse them unless their names are the fields of ``kind``."""
    names = {field.name for field in fields(kind)}
    if values.keys() != names:
        odd = sorted(values.keys() ^ names)
        raise ValueError(f"{file}: must have the fields {sorted(names)}, differs in {odd}")
    return values


def check_count(file: Path, name: str, value: object, least: int, most: int) -> None:
    """Refuse anything but an integer from ``least`` to ``most``."""
    if type(value) is not int or value < least:
        wanted = "a positive integer" if least else "an integer of 0 or more"
        raise ValueError(f"{file}: {name} must be {wanted}, got {value!r}")
    if value > most:
        raise ValueError(f"{file}: {name} must be at most {most}, got {value}")


_READ_BYTES = 1 << 22


def crc32_of(file: Path, size: int | None = None) -> int:
    """zlib's CRC-32 of a file's first ``size`` bytes, or of all bytes if None."""
    crc32 = 0
    for block in blocks(file, file.stat().st_size if size is None else size):
        crc32 = zlib.crc32(block, crc32)
    return crc32


def blocks(file: Path, size: int, unit: int = 1) -> Iterator[bytes]:
    """A file's first ``size`` bytes, in parts whose sizes are multiples of ``unit``."""
    step = max(1, _READ_BYTES // unit) * unit
    with file.open("rb") as content:
        while block := content.read(min(size, step)):
            yield block
            size -= len(block)


def check_file(
    function: str, folder: Path, wanted: DataFile, *, checksum: bool = True, longer: bool = False
) -> None:
    """Refuse a file that is missing, a link, or not of the recorded size and checksum.

    Args:
        function: what the message begins with.
        folder: where the file is.
        wanted: the recorded name, size and checksum.
        checksum: also read the content and compare its checksum.
        longer: the file may be longer; the rest is not checked.

    Raises:
        ValueError: the file is refused.
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
