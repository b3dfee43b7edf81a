"""Opening what is not a datastore, or no longer one, is a ValueError and runs nothing."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hullft_ops.ttft import Datastore
from hullft_ops.ttft import _files as checksums

TEXTS = "texts-00000.arrow"
VECTORS = "embeddings.f32"
UUID = f"{'0' * 12}4000{'8' * 16}"


def data_file(path: Path, name: str) -> Path:
    (folder,) = path.glob("data-*")
    return folder / name


def write_arrow(file: Path, array: pa.Array, column: str = "text") -> None:
    batch = pa.record_batch([array], names=[column])
    with pa.ipc.new_stream(str(file), batch.schema) as writer:
        writer.write_batch(batch)


def test_no_directory(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Datastore.open: no datastore at .*nowhere"
    ):
        Datastore.open(tmp_path / "nowhere")


def edited_manifest(**fields: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return edit


def edited_shard(**fields: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        (shard,) = json.loads((path / "manifest.json").read_text())["shards"]
        edited_manifest(shards=[shard | fields])(path)

    return edit


def texts_replaced(array: pa.Array, column: str = "text") -> Callable[[Path], None]:
    """Other texts whose size and checksum the manifest knows, as a forger would leave them."""

    def replace(path: Path) -> None:
        file = data_file(path, TEXTS)
        write_arrow(file, array, column)
        content = file.read_bytes()
        edited_shard(bytes=len(content), crc32=zlib.crc32(content))(path)

    return replace


def flipped(name: str) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        file = data_file(path, name)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    return flip


def truncated(name: str) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        file = data_file(path, name)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


def vectors_replaced(value: float) -> Callable[[Path], None]:
    """Row 41 with another value, its checksum put right."""

    def replace(path: Path) -> None:
        file = data_file(path, VECTORS)
        vectors = np.fromfile(file, np.float32)
        vectors[41 * 24 + 5] = value
        vectors.tofile(file)
        known = json.loads((path / "manifest.json").read_text())["embeddings"]
        edited_manifest(embeddings=known | {"crc32": zlib.crc32(vectors.tobytes())})(
            path
        )

    return replace


def outside_offsets() -> pa.Array:
    """Offsets whose ends are right, so that only reading all of them tells."""
    offsets = np.full(61, 10_000_000, dtype=np.int32)
    offsets[0], offsets[-1] = 0, 5
    return pa.StringArray.from_buffers(
        60, pa.py_buffer(offsets), pa.py_buffer(b"short")
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: (path / "manifest.json").unlink(),
            "not a datastore: it has no manifest",
        ),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\x00"), "is not JSON"),
        (
            lambda path: (path / "manifest.json").write_text("[" * 100_000),
            "is not JSON",
        ),
        (
            lambda path: (path / "manifest.json").write_text("[]"),
            "must hold a JSON object",
        ),
        (edited_manifest(format="other"), "is not a datastore"),
        (
            edited_manifest(format_version=3),
            "version 3, this package reads version 2: build it",
        ),
        (
            edited_manifest(format_version=1),
            "version 1, this package reads version 2: build it",
        ),
        (edited_manifest(embedder=3), "embedder must be a string, got 3"),
        (edited_manifest(dim=0), "dim must be a positive integer, got 0"),
        (edited_manifest(count=True), "count must be a positive integer, got True"),
        (edited_manifest(count=61), "count must be the sum over shards, got 61"),
        (
            edited_manifest(dim=25),
            "embeddings must be 60 rows in 6000 bytes, got 60 in 5760",
        ),
        (edited_manifest(metric="l2"), "metric must be 'inner_product', got 'l2'"),
        (
            edited_manifest(data="../elsewhere"),
            "data must be named like .*, got '../elsewhere'",
        ),
        (edited_manifest(data=f"data-{UUID}"), f"{TEXTS} is missing or corrupt"),
        (edited_manifest(extra=1), r"differs in \['extra'\]"),
        (edited_manifest(shards=[]), "shards must be a list of files"),
        (edited_manifest(sources="x"), "sources must be a list of objects"),
        (edited_manifest(index={}), "must have the fields"),
        (edited_manifest(embeddings=None), "embeddings must be an object, got None"),
        (edited_shard(file="../texts-00000.arrow"), "shards must be named like"),
        (
            edited_shard(file="/etc/passwd"),
            "shards must be named like .*, got '/etc/passwd'",
        ),
        (
            edited_shard(crc32=-1),
            "shards.crc32 must be an integer of 0 or more, got -1",
        ),
        (
            edited_shard(crc32=1),
            f"{TEXTS} is missing or corrupt: its checksum is wrong",
        ),
        (lambda path: data_file(path, TEXTS).unlink(), f"{TEXTS} is missing"),
        (
            lambda path: data_file(path, TEXTS).write_bytes(b""),
            f"{TEXTS} is missing or",
        ),
        (truncated(TEXTS), f"{TEXTS} is missing or corrupt"),
        (flipped(TEXTS), f"{TEXTS} is missing or corrupt: its checksum is wrong"),
        (texts_replaced(pa.array(["a"] * 59)), "must hold 60 texts, got 59"),
        (
            texts_replaced(pa.array(["a"] * 60), "body"),
            "must hold 60 texts, got 60 rows of body",
        ),
        (
            texts_replaced(pa.array([1] * 60)),
            "must hold 60 texts, got 60 rows of text: int64",
        ),
        (texts_replaced(outside_offsets()), f"{TEXTS} is missing or corrupt"),
        (
            texts_replaced(pa.array(["a"] * 7 + [None] + ["a"] * 52)),
            f"{TEXTS} must hold a text in each row, row 7 is null",
        ),
        (
            vectors_replaced(np.nan),
            f"{VECTORS} must hold unit vectors, row 41 has norm nan",
        ),
        (
            vectors_replaced(-np.inf),
            f"{VECTORS} must hold unit vectors, row 41 has norm inf",
        ),
        (
            vectors_replaced(3e38),
            f"{VECTORS} must hold unit vectors, row 41 has norm inf",
        ),
        (vectors_replaced(2.0), f"{VECTORS} must hold unit vectors, row 41 has norm 2"),
        (lambda path: data_file(path, VECTORS).unlink(), f"{VECTORS} is missing"),
        (
            truncated(VECTORS),
            f"{VECTORS} is missing or corrupt: it must have 5760 bytes",
        ),
        (flipped(VECTORS), f"{VECTORS} is missing or corrupt: its checksum is wrong"),
    ],
)
def test_a_damaged_datastore_is_refused(store, tmp_path, damage, message):
    damage(tmp_path / "store")
    with pytest.raises(ValueError, match=f"(?s)Datastore.open: .*{message}"):
        Datastore.open(tmp_path / "store")


def test_flipped_bytes_are_refused_or_harmless(store, tmp_path):
    """Any one byte of the text file, its checksum put right: a ValueError, or texts to be read."""
    original = data_file(tmp_path / "store", TEXTS).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for round_ in range(300):
        copy = tmp_path / f"copy{round_}"
        shutil.copytree(tmp_path / "store", copy)
        flipped = bytearray(original)
        # Most structure is near the beginning.
        flipped[random.integers(min(len(original), 1024))] ^= 1 << random.integers(8)
        data_file(copy, TEXTS).write_bytes(flipped)
        edited_shard(crc32=zlib.crc32(flipped))(copy)
        try:
            opened = Datastore.open(copy)
        except ValueError:
            refused += 1
        else:
            assert len(list(opened.texts)) == len(store)
        shutil.rmtree(copy)
    assert refused > 30


def test_checksums_can_be_passed_over_but_sizes_cannot(store, tmp_path):
    flipped(VECTORS)(tmp_path / "store")
    assert len(Datastore.open(tmp_path / "store", verify=False)) == 60
    truncated(VECTORS)(tmp_path / "store")
    with pytest.raises(ValueError, match="it must have 5760 bytes"):
        Datastore.open(tmp_path / "store", verify=False)


@pytest.mark.parametrize("kind", ["nulls", "NaN"])
def test_texts_are_checked_in_any_case_and_vectors_where_they_are_searched(
    store, embedder, tmp_path, kind
):
    path = tmp_path / "store"
    if kind == "nulls":
        texts_replaced(pa.array(["a"] * 59 + [None]))(path)
        with pytest.raises(ValueError, match="row 59 is null"):
            Datastore.open(path, verify=False)
        return
    vectors_replaced(np.nan)(path)
    opened = Datastore.open(path, verify=False)
    queries = embedder.encode(["the cat sat"])
    assert 41 not in opened.search(queries, 59)[1]
    with pytest.raises(
        ValueError, match="query 0 must have finite .* with at least 60 texts"
    ):
        opened.search(queries, 60)


def test_rows_are_counted_over_all_that_is_read(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_READ_BYTES", 1000)
    store = Datastore.build(
        [f"cat {i}" for i in range(60)], embedder, tmp_path / "store"
    )
    assert len(store) == 60
    vectors_replaced(np.nan)(tmp_path / "store")
    with pytest.raises(ValueError, match="row 41 has norm nan"):
        Datastore.open(tmp_path / "store")
