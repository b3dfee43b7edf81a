"""Opening what is not a datastore, or no longer one, is a ValueError and runs nothing."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hullft_ops.ttft import Datastore


def data_file(path: Path, name: str) -> Path:
    (folder,) = path.glob("data-*")
    return folder / name


def write_arrow(file: Path, array: pa.Array, column: str = "text") -> None:
    batch = pa.record_batch([array], names=[column])
    with pa.ipc.new_stream(str(file), batch.schema) as writer:
        writer.write_batch(batch)


def test_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Datastore.open: no datastore at .*nowhere"):
        Datastore.open(tmp_path / "nowhere")


def edited_manifest(**fields: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return edit


def texts_replaced(array: pa.Array, column: str = "text") -> Callable[[Path], None]:
    return lambda path: write_arrow(data_file(path, "texts.arrow"), array, column)


def embeddings_replaced(matrix: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(data_file(path, "embeddings.npy"), matrix)


def truncated(name: str) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        file = data_file(path, name)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


def outside_offsets() -> pa.Array:
    """Offsets whose ends are right, so that only reading all of them tells."""
    offsets = np.full(61, 10_000_000, dtype=np.int32)
    offsets[0], offsets[-1] = 0, 5
    return pa.StringArray.from_buffers(60, pa.py_buffer(offsets), pa.py_buffer(b"short"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "manifest.json").unlink(), "not a datastore: it has no manifest"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\x00"), "is not JSON"),
        (lambda path: (path / "manifest.json").write_text("[" * 100_000), "is not JSON"),
        (lambda path: (path / "manifest.json").write_text("[]"), "is not a datastore"),
        (edited_manifest(format="other"), "is not a datastore"),
        (edited_manifest(format_version=2), "version 2, this package reads version 1"),
        (edited_manifest(embedder=3), "embedder must be a string, got 3"),
        (edited_manifest(dim=0), "dim must be a positive integer, got 0"),
        (edited_manifest(count=True), "count must be a positive integer, got True"),
        (edited_manifest(count=61), "must hold 61 texts, got 60"),
        (edited_manifest(dim=25), r"must be float32 \[60, 25\] in C order"),
        (edited_manifest(metric="l2"), "metric must be 'inner_product', got 'l2'"),
        (edited_manifest(data="../elsewhere"), "data must be named like .*, got '../elsewhere'"),
        (edited_manifest(data="data-0"), "texts.arrow is missing or corrupt"),
        (lambda path: data_file(path, "texts.arrow").unlink(), "texts.arrow is missing"),
        (lambda path: data_file(path, "texts.arrow").write_bytes(b""), "texts.arrow is missing or"),
        (lambda path: data_file(path, "texts.arrow").write_bytes(b"junk" * 99), "missing or corru"),
        (truncated("texts.arrow"), "texts.arrow is missing or corrupt"),
        (texts_replaced(pa.array(["a"] * 59)), "must hold 60 texts, got 59"),
        (texts_replaced(pa.array(["a"] * 60), "body"), "must hold 60 texts, got 60 rows of body"),
        (texts_replaced(pa.array([1] * 60)), "must hold 60 texts, got 60 rows of text: int64"),
        (texts_replaced(outside_offsets()), "texts.arrow is missing or corrupt"),
        (lambda path: data_file(path, "embeddings.npy").unlink(), "embeddings.npy is missing"),
        (lambda path: data_file(path, "embeddings.npy").write_bytes(b""), "embeddings.npy is miss"),
        (truncated("embeddings.npy"), "embeddings.npy is missing or corrupt"),
        (embeddings_replaced(np.zeros((60, 24))), r"got float64 \[60, 24\]"),
        (embeddings_replaced(np.zeros((59, 24), np.float32)), r"got float32 \[59, 24\]"),
        (embeddings_replaced(np.zeros((24, 60), np.float32).T), "in C order"),
    ],
)
def test_a_damaged_datastore_is_refused(store, tmp_path, damage, message):
    damage(tmp_path / "store")
    with pytest.raises(ValueError, match=f"(?s)Datastore.open: .*{message}"):
        Datastore.open(tmp_path / "store")


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("how", ["npy", "pickle"])
def test_nothing_is_unpickled(store, tmp_path, how):
    payload, file = Payload(tmp_path / "ran"), data_file(tmp_path / "store", "embeddings.npy")
    if how == "npy":
        np.save(file, np.array([payload], dtype=object), allow_pickle=True)
    else:
        file.write_bytes(pickle.dumps(payload))
    with pytest.raises(ValueError, match=r"embeddings\.npy is missing or corrupt"):
        Datastore.open(tmp_path / "store")
    assert not (tmp_path / "ran").exists()


def test_flipped_bytes_are_refused_or_harmless(store, tmp_path):
    """Any one byte of the text file: opening raises ValueError or every text can be read."""
    original = data_file(tmp_path / "store", "texts.arrow").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for round_ in range(300):
        copy = tmp_path / f"copy{round_}"
        shutil.copytree(tmp_path / "store", copy)
        flipped = bytearray(original)
        # Most structure is near the beginning.
        flipped[random.integers(min(len(original), 1024))] ^= 1 << random.integers(8)
        data_file(copy, "texts.arrow").write_bytes(flipped)
        try:
            opened = Datastore.open(copy)
        except ValueError:
            refused += 1
        else:
            assert len(list(opened.texts)) == len(store)
    assert refused > 30
