"""Files that appear whole or not at all."""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The form of `uuid.uuid4().hex`. A person would not choose such a name.
UUID = "[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}"
# No space, no quota, or a file that is too large.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until the file's content, or the directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
