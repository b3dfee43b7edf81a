"""How much memory indexing takes: a large synthetic corpus, an embedder that costs nothing.

    python tools/measure_index_memory.py FOLDER --gigabytes 2

Of resident memory, the anonymous part is what the process needs; the rest are pages of the files
that it has mapped, which the system drops when it wants the room.
"""

import argparse
import json
import random
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

# Indexing loads them. Loaded here, they count as memory from before.
import datasets  # noqa: F401
import faiss  # noqa: F401
import numpy as np

from hullft_ops.ttft import IndexThresholds, Source, index_corpus

DIM = 64
TEXT_CHARS = 800
WORDS = 4000


class HashEmbedder:
    """A unit vector by the text's checksum."""

    name, dim = "hash", DIM

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), DIM), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            vector[zlib.crc32(text.encode()) % DIM] = 1
        return vectors


class PeakMemory:
    """The largest value of fields of ``/proc/self/status``, looked at 20 times a second."""

    def __init__(self) -> None:
        self.peak = {"RssAnon": 0, "VmRSS": 0}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            for name in self.peak:
                self.peak[name] = max(self.peak[name], resident(name))


def resident(name: str) -> int:
    """A field of this process's status, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) >> 10


def write_corpus(file: Path, size: int) -> int:
    """About ``size`` bytes of distinct records; how many."""
    generator = random.Random(0)
    words = [f"w{generator.getrandbits(40):x}" for _ in range(WORDS)]
    count = written = 0
    with file.open("w") as out:
        while written < size:
            text = f"{count} " + " ".join(generator.choices(words, k=TEXT_CHARS // 12))
            written += out.write(
                json.dumps({"text": text, "domain": "ab"[count % 2]}) + "\n"
            )
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the memory that indexing takes."
    )
    parser.add_argument("folder", type=Path, help="for the corpus and the datastore")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    options = parser.parse_args()
    file = options.folder / "synthetic.jsonl"
    count = write_corpus(file, int(options.gigabytes * 1e9))
    before, started = resident("RssAnon"), time.perf_counter()
    # Exact search: building another index has its own, stated, needs.
    flat = IndexThresholds(flat=count)
    with PeakMemory() as memory:
        source = Source(file, metadata=("domain",))
        index_corpus(source, options.folder / "store", HashEmbedder(), thresholds=flat)
    print(
        f"{file.stat().st_size / 1e9:.2f} GB, {count} texts, "
        f"{time.perf_counter() - started:.0f} s; MiB of memory: {before} anonymous before, "
        f"{memory.peak['RssAnon']} at most, {memory.peak['VmRSS']} with mapped files"
    )


if __name__ == "__main__":
    main()
