"""Files of JSON lines. An error names the file, the line and the key."""

from collections.abc import Iterator
from pathlib import Path

from hullft_ops.ttft.validation import Kind, parse


def read_lines(kind: type[Kind], path: Path, what: str) -> Iterator[Kind]:
    """The model on each line of a file, without blank lines. Raises as `parse`, and OSError."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            yield parse(kind, line, f"{what} {path}: line {number}")
