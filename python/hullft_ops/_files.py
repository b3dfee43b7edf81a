"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a killed process leaves of the files that it was replacing.
PARTIAL_FILES = ".*.partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` once it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """`replacing`, and on the disk before this returns."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        sync(temporary)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the file's content, or the directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
