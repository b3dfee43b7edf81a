"""Whether a file is the one that was written."""

import zlib
from pathlib import Path

from hullft_ops.ttft.manifest import DataFile

_READ_BYTES = 1 << 22


def crc32_of(file: Path) -> int:
    """zlib's CRC-32 of a file's content."""
    crc32 = 0
    with file.open("rb") as content:
        while block := content.read(_READ_BYTES):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def check_file(function: str, folder: Path, wanted: DataFile, *, checksum: bool = True) -> None:
    """Refuse a file that is missing, or of another size or checksum than was written down.

    Raises:
        ValueError: as said.
    """
    file = folder / wanted.file
    size = file.stat().st_size if file.is_file() else None
    if size != wanted.bytes:
        raise ValueError(
            f"{function}: {file} is missing or corrupt: it must have {wanted.bytes} bytes, "
            f"has {'none' if size is None else size}"
        )
    if checksum and crc32_of(file) != wanted.crc32:
        raise ValueError(f"{function}: {file} is missing or corrupt: its checksum is wrong")
