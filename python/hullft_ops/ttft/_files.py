"""Files that appear whole or not at all, and their checksums."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The form of `uuid.uuid4().hex`. A person would not choose such a name.
UUID = "[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}"
# Lists the files that we wrote into a folder.
MANIFEST = "hullft_ops.json"
# No space, no quota, or a file that is too large.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_BYTES = 1 << 22


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write. Once it is complete, it takes the place of ``path``."""
    temporary = _partial(path)
    try:
        with full_disk_explained(path, "the file is as it was before"):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write files into. Once they are complete, they appear at ``path``.

    A new folder appears whole. With ``overwrite``, the files replace those that an earlier call
    wrote, one after the other. Other files stay. FileExistsError as from `replaceable`.
    """
    path = path.absolute()
    ours = replaceable(path, overwrite=overwrite)
    with staging_folder(path) as staging:
        with full_disk_explained(path, "nothing there has changed"):
            yield staging
            names = {file.name for file in staging.iterdir()} | {MANIFEST}
            (staging / MANIFEST).write_text(json.dumps(sorted(names)), encoding="utf-8")
            for name in names:
                sync(staging / name)
        if not ours:
            staging.rename(path)
            return
        for name in names - ours:
            if (path / name).exists():
                raise FileExistsError(
                    f"{path / name} exists, and is not a file of ours"
                )
        for name in sorted(names):
            (staging / name).replace(path / name)
        for name in ours - names:
            (path / name).unlink(missing_ok=True)


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, which goes at the end of the block unless it was moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _partial(path)
    try:
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _partial(path: Path) -> Path:
    # Only one call uses it: other threads and processes may be replacing ``path`` too.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def replaceable(path: Path, *, overwrite: bool) -> set[str]:
    """The names of the files in the folder that we wrote; none if it is new or empty.

    FileExistsError if there is something else, or ``overwrite`` is False.
    """
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return set()
    if not overwrite:
        raise FileExistsError(f"{path} exists: name another, or pass overwrite=True")
    try:
        names = set(json.loads((path / MANIFEST).read_bytes()))
        return {name for name in names if Path(name).name == name} | {MANIFEST}
    except (OSError, ValueError, TypeError) as error:
        raise FileExistsError(
            f"{path} exists, and has no {MANIFEST} of ours"
        ) from error


@contextmanager
def full_disk_explained(path: Path, advice: str) -> Iterator[None]:
    """If the disk is full, raise an OSError that names ``path``, with ``advice``."""
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


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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


@contextmanager
def alone_in(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Wait until nobody else writes there; with ``busy``, raise a ValueError with it instead."""
    # The system unlocks it if the process dies.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise ValueError(busy) from error
        yield
    finally:
        os.close(descriptor)
