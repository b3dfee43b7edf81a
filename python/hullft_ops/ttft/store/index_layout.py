"""Checking that a FAISS file has the layout that `build_index` writes.

FAISS trusts the sizes in its files, so a forged size could make it read or write anywhere. Here
every size is compared with the manifest before FAISS sees the file. FAISS then reads only numbers:
centroids, codes and row numbers.
"""

import mmap
import struct
from pathlib import Path

from hullft_ops.ttft.store.format import SearchIndex

_FOURCC = {"ivf": b"IwSq", "ivfpq": b"IwPQ"}
_INNER_PRODUCT = 0
_EIGHT_BITS = 0  # faiss.ScalarQuantizer.QT_8bit


def check_layout(file: Path, shape: tuple[int, int], facts: SearchIndex) -> None:
    """Refuse a file that is not the index ``facts`` of a matrix with that shape.

    Raises:
        ValueError: a size in it differs, or the file has another length.
    """
    with file.open("rb") as opened:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is missing or corrupt: it is empty")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Walk(file, content).index(shape, facts)


class _Walk:
    """A position in the file. It moves on with every read."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self._file = file
        self._content = content
        self._place = 0

    def index(self, shape: tuple[int, int], facts: SearchIndex) -> None:
        count, dim = shape
        self._expect("kind", self._bytes(4), _FOURCC[facts.kind])
        self._header(count, dim)
        self._expect("lists", self._one("Q"), facts.lists)
        self._one("Q")  # lists to read; each search sets its own number
        self._quantizer(facts.lists, dim)
        self._expect("direct map", (self._one("B"), self._one("Q")), (0, 0))
        code = self._scalar_code(dim) if facts.kind == "ivf" else self._product_code(dim)
        self._lists(count, facts.lists, code)
        self._expect("bytes", len(self._content), self._place)

    def _header(self, count: int, dim: int) -> None:
        self._expect("dim and rows", self._some("<iq"), (dim, count))
        self._some("<qq")
        self._expect("state and metric", self._some("<Bi"), (1, _INNER_PRODUCT))

    def _quantizer(self, lists: int, dim: int) -> None:
        self._expect("quantizer", self._bytes(4), b"IxFI")
        self._header(lists, dim)
        self._expect("centroids", self._one("Q"), lists * dim)
        self._skip(4 * lists * dim)

    def _scalar_code(self, dim: int) -> int:
        kind, _, _ = self._some("<iif")
        self._expect("code", (kind, *self._some("<QQQ")), (_EIGHT_BITS, dim, dim, 2 * dim))
        self._skip(4 * 2 * dim)
        self._expect("code size", self._one("Q"), dim)
        self._residual()
        return dim

    def _product_code(self, dim: int) -> int:
        self._residual()
        size = self._one("Q")
        if not 1 <= size <= dim or dim % size:
            raise self._error("code size", size, f"a divisor of {dim}")
        self._expect("code", self._some("<QQQQ"), (dim, size, 8, 256 * dim))
        self._skip(4 * 256 * dim)
        return size

    def _residual(self) -> None:
        if self._one("B") > 1:
            raise self._error("residual flag", "another", "0 or 1")

    def _lists(self, count: int, lists: int, code: int) -> None:
        self._expect("inverted lists", self._bytes(4), b"ilar")
        self._expect("inverted lists", self._some("<QQ"), (lists, code))
        kind, length = self._bytes(4), self._one("Q")
        if kind == b"full":
            self._expect("list sizes", length, lists)
            sizes = self._many(length)
        else:
            self._expect("list sizes", kind, b"sprs")
            if length > 2 * lists:
                raise self._error("list sizes", length, f"at most {2 * lists}")
            pairs = self._many(length)
            places, sizes = pairs[::2], pairs[1::2]
            # FAISS stores each size at its place.
            if len(places) != len(sizes) or any(place >= lists for place in places):
                raise self._error("list numbers", "others", f"below {lists}")
            if len(set(places)) != len(places):
                raise self._error("list numbers", "repeated ones", "different ones")
        self._expect("rows in lists", sum(sizes), count)
        self._skip(count * (code + 8))

    def _expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise self._error(what, found, wanted)

    def _error(self, what: str, found: object, wanted: object) -> ValueError:
        return ValueError(
            f"{self._file} is missing or corrupt: {what} must be {wanted}, got {found}"
        )

    def _skip(self, size: int) -> int:
        start = self._place
        if size > len(self._content) - start:
            raise self._error("bytes", len(self._content), f"at least {start + size}")
        self._place += size
        return start

    def _bytes(self, size: int) -> bytes:
        start = self._skip(size)
        return self._content[start : start + size]

    def _some(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))

    def _one(self, letter: str) -> int:
        return self._some(f"<{letter}")[0]

    def _many(self, length: int) -> tuple[int, ...]:
        return self._some(f"<{length}Q")
