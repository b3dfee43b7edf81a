"""Writing a datastore's files, with only a batch of texts in memory at a time."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import Progress

from hullft_ops._checks import check_integer
from hullft_ops.ttft.embedding import Embedder, encode_checked
from hullft_ops.ttft.manifest import Manifest
from hullft_ops.ttft.progress import progress_bar

TEXTS_FILE = "texts.arrow"
EMBEDDINGS_FILE = "embeddings.npy"
TEXT_SCHEMA = pa.schema([("text", pa.string())])
_ROWS_PER_WRITE = 1024
# Enough for an embedder to sort by length, few enough for the progress bar to move.
_TEXTS_PER_ENCODE = 128


def write_store(
    texts: Iterable[str], embedder: Embedder, directory: Path, *, data: str, progress: bool
) -> None:
    """Make ``directory`` with the manifest and the data directory named ``data``.

    The texts are written first and embedded from there, so that their number is known.
    """
    check_integer("Datastore.build", "embedder.dim", embedder.dim, 1)
    folder = directory / data
    folder.mkdir(parents=True)
    with progress_bar(Console(stderr=True), shown=progress) as bar:
        count = _write_texts(bar.track(texts, description="writing texts"), folder / TEXTS_FILE)
        if count == 0:
            raise ValueError("Datastore.build: texts is empty, need at least 1")
        written = datasets.Dataset.from_file(str(folder / TEXTS_FILE))["text"]
        _write_embeddings(written, embedder, folder / EMBEDDINGS_FILE, bar)
    Manifest(embedder=embedder.name, dim=embedder.dim, count=count, data=data).write(directory)


def _write_texts(texts: Iterable[str], file: Path) -> int:
    checked = _checked(texts)
    count = 0
    with pa.ipc.new_stream(str(file), TEXT_SCHEMA) as writer:
        while rows := list(islice(checked, _ROWS_PER_WRITE)):
            writer.write_batch(pa.record_batch([pa.array(rows, pa.string())], schema=TEXT_SCHEMA))
            count += len(rows)
    return count


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"Datastore.build: texts[{position}] must be a str, got {type(text).__name__}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Datastore.build: texts[{position}] must be valid Unicode: {error}"
            ) from error
        yield text


def _write_embeddings(texts: Sequence[str], embedder: Embedder, file: Path, bar: Progress) -> None:
    shape = (len(texts), embedder.dim)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    task = bar.add_task("embedding", total=len(texts))
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {**header, "shape": shape})
        for start in range(0, len(texts), _TEXTS_PER_ENCODE):
            batch = list(texts[start : start + _TEXTS_PER_ENCODE])
            out.write(encode_checked("Datastore.build", embedder, batch).tobytes())
            bar.advance(task, len(batch))
