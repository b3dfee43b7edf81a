"""The datastore of a folder: what is embedded, when some of the files change."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hullft_ops.ttft.store.build import Cutting, folder_datastore
from hullft_ops.ttft.store.datastore import Datastore

FILES = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 files in folders: texts of two passages, every tenth a binary file."""
    for number in range(FILES):
        file = (
            tmp_path
            / "mine"
            / f"{number % 7}"
            / f"{number}.{'bin' if number % 10 == 0 else 'md'}"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        text = f"the page about number {number} " * 3
        file.write_bytes(b"\x89\0" if number % 10 == 0 else text.encode())
    return tmp_path / "mine"


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


@pytest.fixture
def opened(folder, tokenizer, embedder, tmp_path):
    """Opens the folder's datastore: gives it, how many texts were embedded, and what was said."""

    def opened() -> tuple[Datastore, int, str]:
        before, said = files(folder), StringIO()
        embedder.batch_sizes.clear()
        cutting = Cutting(tokenizer, 24)
        console = Console(file=said, width=500)
        store = folder_datastore(folder, embedder, cutting, tmp_path / "kept", console)
        assert files(folder) == before
        return store, sum(embedder.batch_sizes), said.getvalue()

    return opened


def same(store: Datastore, embedder) -> None:
    np.testing.assert_array_equal(
        store.embeddings.numpy(), embedder.encode(list(store.texts))
    )


def test_only_the_passages_of_changed_files_are_embedded(
    opened, folder, embedder, tmp_path
):
    store, embedded, said = opened()
    (first,) = (tmp_path / "kept").iterdir()
    assert embedded == len(store) > FILES
    assert f"datastore of {folder}: {first}" in said
    assert store.manifest.sources[0]["binary"] == FILES // 10
    same(store, embedder)

    again, embedded, said = opened()
    assert (len(again), embedded) == (len(store), 0)
    assert f"{folder} has not changed: {len(store)} passages in {first}" in said

    (folder / "1" / "1.md").write_text("a page that nobody knew")
    (folder / "2" / "2.md").unlink()
    changed, embedded, said = opened()
    new = set(changed.texts) - set(store.texts)
    assert embedded == len(new) == 1
    assert len(changed) < len(store)
    assert (
        f"{len(changed)} passages, 1 of them embedded now; 30 files that are not text"
        in said
    )
    assert [path.name != first.name for path in (tmp_path / "kept").iterdir()] == [True]
    same(changed, embedder)


def test_a_datastore_inside_of_the_folder_is_no_text_of_it(folder, embedder):
    found = [
        folder_datastore(
            folder, embedder, Cutting(), folder / "kept", Console(quiet=True)
        )
        for _ in range(2)
    ]
    assert [len(store) for store in found] == [FILES - FILES // 10] * 2
    assert sum(embedder.batch_sizes) == len(found[0])
    assert len(list((folder / "kept").iterdir())) == 1


def test_an_interrupted_build_goes_on(opened, embedder, monkeypatch):
    encode, batches = type(embedder).encode, []

    def interrupted(self, texts):
        batches.append(len(texts))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return encode(self, texts)

    monkeypatch.setattr("hullft_ops.ttft.store.writer._SECONDS_PER_COMMIT", -1.0)
    monkeypatch.setattr(type(embedder), "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened()
    store, embedded, _ = opened()
    assert embedded == len(store) - sum(batches[:2])
    same(store, embedder)
