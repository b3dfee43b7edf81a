"""The file by which a datastore's directory says what it is."""

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hullft_ops._files import write_durably

FORMAT = "hullft_ops.datastore"
FORMAT_VERSION = 2
METRIC = "inner_product"
MANIFEST_FILE = "manifest.json"
JOURNAL_FILE = "journal.json"
EMBEDDINGS_FILE = "embeddings.f32"
# Every name that a manifest holds is one of these, which keeps its paths inside the directory.
_DATA_DIRECTORY = re.compile(r"data-[0-9a-f]{1,32}")
_SHARD_FILE = re.compile(r"texts-[0-9]{5}\.arrow")
_INDEX_FILE = re.compile(r"index-[0-9a-f]{1,32}\.faiss")


class VersionError(ValueError):
    """A datastore of a version that this package does not read."""


@dataclass(frozen=True)
class DataFile:
    """A file in the data directory: its name, bytes and zlib CRC-32, and its rows."""

    file: str
    count: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class SearchIndex:
    """How a datastore is searched, and what was measured of it when it was built.

    Attributes:
        kind: "flat" (exact, over the embeddings themselves), "ivf" (inverted lists of 8-bit
            codes) or "ivfpq" (inverted lists of product-quantised codes); the candidates of both
            are ranked again by the embeddings.
        lists: number of inverted lists; 0 for "flat".
        probes: how many of them a search reads.
        candidates: how many codes are ranked again for each neighbour asked for.
        recall: share of the exact neighbours that are found, at ``recall_k`` neighbours, mean of
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
        data: name of the subdirectory that holds them.
        shards: the Arrow files of texts and metadata, in order.
        embeddings: the file of the vectors.
        sources: what was read for each shard, and what was left out.
        index: how it is searched.
        metric: how vectors are compared; "inner_product".
        format: "hullft_ops.datastore".
        format_version: layout of the directory; 2.
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

    def write(self, directory: Path) -> None:
        """Put the manifest into ``directory``, in place of the one there, in one durable step."""
        write_json_durably(directory / MANIFEST_FILE, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """The manifest in ``directory``, every field checked.

        Raises:
            FileNotFoundError: no such directory.
            ValueError: not a datastore, an unfinished one, or a corrupt one.
            VersionError: one of another format version.
        """
        if not directory.exists():
            raise FileNotFoundError(f"no datastore at {directory}")
        file = directory / MANIFEST_FILE
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
        for name in ("dim", "count"):
            _check_count(file, name, getattr(manifest, name), 1)
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
        if not isinstance(sources, list) or not all(isinstance(s, dict) for s in sources):
            raise ValueError(f"{file}: sources must be a list of objects, got {sources!r}")
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
            index=_search_index(file, manifest.index),
        )


def write_json_durably(file: Path, values: dict[str, Any]) -> None:
    """Replace ``file`` by the object, in one durable step."""
    write_durably(file, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError where there is none."""
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is not a datastore's: it holds no object")
    return values


def check_data_directory(file: Path, name: object) -> None:
    """Refuse a data directory that is named otherwise than ours, in ``file``."""
    _check_name(file, "data", name, _DATA_DIRECTORY, "data-0a1b")


def _check_name(file: Path, field: str, name: object, pattern: re.Pattern[str], like: str) -> None:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(f"{file}: {field} must be named like {like}, got {name!r}")


def data_file(
    source: Path, field: str, values: object, pattern: re.Pattern[str] = _SHARD_FILE
) -> DataFile:
    """The data file that a JSON object describes; ValueError unless every part is sound."""
    if not isinstance(values, dict):
        raise ValueError(f"{source}: {field} must be an object, got {values!r}")
    found = DataFile(**_known(DataFile, values, source))
    _check_name(source, field, found.file, pattern, pattern.pattern)
    for name in ("count", "bytes", "crc32"):
        _check_count(source, f"{field}.{name}", getattr(found, name), 0)
    return found


def _search_index(file: Path, values: object) -> SearchIndex:
    if not isinstance(values, dict):
        raise ValueError(f"{file}: index must be an object, got {values!r}")
    index = SearchIndex(**_known(SearchIndex, values, file))
    if index.kind not in ("flat", "ivf", "ivfpq"):
        raise ValueError(f"{file}: index.kind must be flat, ivf or ivfpq, got {index.kind!r}")
    for name in ("lists", "probes", "candidates", "recall_k", "recall_queries"):
        _check_count(file, f"index.{name}", getattr(index, name), 0)
    if not isinstance(index.recall, int | float):
        raise ValueError(f"{file}: index.recall must be a number, got {index.recall!r}")
    if index.kind == "flat":
        return replace(index, file=None)
    return replace(index, file=data_file(file, "index.file", index.file, _INDEX_FILE))


def _known(kind: type, values: dict[str, Any], file: Path) -> dict[str, Any]:
    """``values``, refused unless their names are the fields of ``kind``."""
    names = {field.name for field in fields(kind)}
    if values.keys() != names:
        odd = sorted(values.keys() ^ names)
        raise ValueError(f"{file}: must have the fields {sorted(names)}, differs in {odd}")
    return values


def _check_count(file: Path, name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        wanted = "a positive integer" if least else "an integer of 0 or more"
        raise ValueError(f"{file}: {name} must be {wanted}, got {value!r}")
