"""Files that appear whole or not at all, and their checksums."""

import errno
import os
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The form of `uuid.uuid4().hex`. A person would not choose such a name.
UUID = "[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}"
# No space, no quota, or a file that is too large.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_BYTES = 1 << 22


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write. Once it is complete, it takes the place of ``path``."""
    # Only this call uses it: other threads and processes may be replacing ``path`` too.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with full_disk_explained(path, "the file is as it was before"):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def full_disk_explained(path: Path, advice: str) -> Iterator[None]:
    """If the disk is full, say what could not be written, and ``advice``.

    Raises:
        OSError: the disk is full; the ``errno`` stays the same.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        said = f"{os.strerror(error.errno)}, {advice}"
        raise OSError(error.errno, said, str(path)) from error


def write_durably(path: Path, content: bytes) -> None:
    """As `replacing`. The content is on the disk when this returns."""
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
