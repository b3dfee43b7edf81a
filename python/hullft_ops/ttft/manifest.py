"""The file by which a datastore's directory says what it is."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

FORMAT = "hullft_ops.datastore"
FORMAT_VERSION = 1
METRIC = "inner_product"
MANIFEST_FILE = "manifest.json"
_DATA_DIRECTORY = re.compile(r"data-[0-9a-f]{1,32}")


@dataclass(frozen=True)
class Manifest:
    """What a datastore holds.

    Attributes:
        embedder: name of the embedder that made the vectors.
        dim: length of a vector.
        count: number of texts, and of vectors.
        data: name of the subdirectory that holds them.
        metric: how vectors are compared; "inner_product".
        format: "hullft_ops.datastore".
        format_version: layout of the directory; 1.
    """

    embedder: str
    dim: int
    count: int
    data: str
    metric: str = METRIC
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def write(self, directory: Path) -> None:
        """Write the manifest into ``directory``; not atomic, so that must be a staging one."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """The manifest in ``directory``, every field checked.

        Raises:
            FileNotFoundError: no such directory.
            ValueError: not a datastore, one of another format version, or a corrupt one.
        """
        file = directory / MANIFEST_FILE
        if not directory.exists():
            raise FileNotFoundError(f"no datastore at {directory}")
        if not file.is_file():
            raise ValueError(f"{directory} is not a datastore: it has no {MANIFEST_FILE}")
        try:
            fields = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise ValueError(f"{directory} is not a datastore: {file} lacks format {FORMAT!r}")
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{directory} has datastore format version {version!r}, "
                f"this package reads version {FORMAT_VERSION}: build it again"
            )
        return cls._from_fields(fields, file)

    @classmethod
    def _from_fields(cls, fields: dict[str, object], file: Path) -> "Manifest":
        embedder, dim, count = fields.get("embedder"), fields.get("dim"), fields.get("count")
        data, metric = fields.get("data"), fields.get("metric")
        if not isinstance(embedder, str):
            raise ValueError(f"{file}: embedder must be a string, got {embedder!r}")
        if type(dim) is not int or dim < 1:
            raise ValueError(f"{file}: dim must be a positive integer, got {dim!r}")
        if type(count) is not int or count < 1:
            raise ValueError(f"{file}: count must be a positive integer, got {count!r}")
        # Also keeps the path inside the datastore's directory.
        if not isinstance(data, str) or not _DATA_DIRECTORY.fullmatch(data):
            raise ValueError(f"{file}: data must be named like data-0a1b, got {data!r}")
        if metric != METRIC:
            raise ValueError(f"{file}: metric must be {METRIC!r}, got {metric!r}")
        return cls(embedder=embedder, dim=dim, count=count, data=data)
