"""Checking that a file is still as it was written."""

import zlib
from collections.abc import Iterator
from pathlib import Path

from hullft_ops.ttft.manifest import DataFile, refuse_link

_READ_BYTES = 1 << 22


def crc32_of(file: Path, size: int | None = None) -> int:
    """zlib's CRC-32 of a file's first ``size`` bytes, or of all bytes if None."""
    crc32 = 0
    for block in blocks(file, file.stat().st_size if size is None else size):
        crc32 = zlib.crc32(block, crc32)
    return crc32


def blocks(file: Path, size: int, unit: int = 1) -> Iterator[bytes]:
    """A file's first ``size`` bytes in parts that are whole multiples of ``unit``."""
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
