"""A disk that is full: an error that says so, no half file, and going on once there is room.

The system's own limit on the size of a file stands for the disk: it strikes whoever writes, also
FAISS and Arrow, which write without Python. So does an error at each lasting change in turn.
"""

import errno
import json
import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forked import forked, status_of
from hullft_ops.ttft import Datastore
from hullft_ops.ttft._files import replacing
from hullft_ops.ttft.evaluation import results as results_module
from hullft_ops.ttft.evaluation.report import write_report
from hullft_ops.ttft.evaluation.results import open_results, read_rows
from hullft_ops.ttft.store import writer as store_writer
from hullft_ops.ttft.store.build import index_corpus
from hullft_ops.ttft.store.search import IndexThresholds
from hullft_ops.ttft.store.sources import Source
from result_rows import SETTINGS, result_row

COUNT = 1200
INVERTED = IndexThresholds(flat=1000)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    file = tmp_path / "c.jsonl"
    texts = (f"passage number {n} of word{n % 7} and so on" for n in range(COUNT))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(file)


@pytest.fixture(autouse=True)
def _commit_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "_SECONDS_PER_COMMIT", -1.0)


def limited(largest: int, run: Callable[[], object]) -> str | None:
    """What an OSError says in a process that writes no larger file; None where there is none."""
    reader, writer = os.pipe()

    def run_limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        try:
            run()
        except OSError as error:
            os.write(writer, f"{error.errno} {error}".encode())

    child = forked(run_limited)
    os.close(writer)
    assert status_of(child) == 0
    with os.fdopen(reader) as said:
        return said.read() or None


def test_each_of_two_threads_replaces_a_file_as_a_whole(tmp_path: Path) -> None:
    path, meeting = tmp_path / "report.json", threading.Barrier(2, timeout=10)

    def write(letter: str) -> None:
        with replacing(path) as temporary, temporary.open("w") as file:
            file.write(1000 * letter)
            file.flush()
            meeting.wait()
            file.write(1000 * letter)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    assert path.read_text() in (2000 * "a", 2000 * "b")
    assert not partial_files(tmp_path)


def partial_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.match(".*.partial")]


# Texts, vectors, the index, and a journal: what is too large differs.
@pytest.mark.parametrize("largest", [0, 300, 20_000, 60_000, 100_000])
def test_index_says_so_and_resumes(source, embedder, tmp_path, largest):
    def index(mode: str) -> Datastore:
        return index_corpus(source, path, embedder, mode=mode, thresholds=INVERTED)

    path = tmp_path / "whole"
    whole = index("new")
    assert max(f.stat().st_size for f in path.rglob("*") if f.is_file()) > 100_000
    path = tmp_path / "store"
    said = limited(largest, lambda: index("new"))
    assert said is not None
    assert said.startswith(f"{errno.EFBIG} [Errno {errno.EFBIG}] File too large")
    assert str(path) in said
    assert "free some space, then resume" in said
    assert not partial_files(tmp_path)
    with pytest.raises(ValueError, match=r"not finished|has no manifest"):
        Datastore.open(path)
    resumed = index("resume")
    assert list(resumed.rows) == list(whole.rows)
    assert resumed.embeddings.equal(whole.embeddings)
    assert len(list(path.rglob("*"))) == 5


@pytest.mark.parametrize("largest", [20_000, 60_000, 100_000])
def test_build_says_so_and_leaves_what_was_there(embedder, tmp_path, largest):
    path, texts = (
        tmp_path / "store",
        [f"text {n} of word{n % 9} and more" for n in range(COUNT)],
    )

    def build() -> Datastore:
        return Datastore.build(
            texts, embedder, path, progress=False, overwrite=True, thresholds=INVERTED
        )

    Datastore.build(["one", "two"], embedder, path, progress=False)
    said = limited(largest, build)
    assert said is not None
    assert "File too large, no datastore was written, nor one replaced" in said
    assert str(path) in said
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["store"]
    assert list(Datastore.open(path).texts) == ["one", "two"]
    assert list(build().texts) == texts


class FullAt:
    """The lasting change of that number, and each after it, finds no space."""

    def __init__(self, number: int) -> None:
        self.left = number

    def wrapped(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **keywords)

        return call


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], FullAt]]:
    contexts = []

    def begin(number: int) -> FullAt:
        full, patch = FullAt(number), pytest.MonkeyPatch()
        contexts.append(patch)
        patch.setattr(os, "fsync", full.wrapped(os.fsync))
        patch.setattr(Path, "replace", full.wrapped(Path.replace))
        patch.setattr(Path, "write_bytes", full.wrapped(Path.write_bytes))
        patch.setattr(Path, "write_text", full.wrapped(Path.write_text))
        return full

    begin.end = lambda: [patch.undo() for patch in contexts]
    yield begin
    begin.end()


def test_index_that_finds_no_space_at_a_change_resumes(
    source, embedder, tmp_path, full_at
):
    def index(path: Path, mode: str) -> Datastore:
        return index_corpus(source, path, embedder, mode=mode, thresholds=INVERTED)

    whole = index(tmp_path / "whole", "new")
    # A batch is five changes: every third of many meets each kind of them.
    for number in range(0, 200, 3):
        path = tmp_path / f"store{number}"
        full, caught = full_at(number), None
        try:
            index(path, "new")
        except OSError as error:
            caught = error
        finally:
            full_at.end()
        if full.left >= 0:
            break
        assert caught is not None
        assert caught.errno == errno.ENOSPC
        assert "No space left on device, the datastore is as its readers saw it" in str(
            caught
        )
        assert not partial_files(tmp_path)
        resumed = index(path, "resume")
        assert list(resumed.texts) == list(whole.texts)
        assert resumed.embeddings.equal(whole.embeddings)
        assert len(list(path.rglob("*"))) == 5
    assert number > 30


def test_results_keep_whole_rows_and_go_on(tmp_path):
    """As `evaluate` and `tune` append them."""
    file = tmp_path / "rows.jsonl"
    rows = [result_row(f"p{number}") for number in range(4)]

    def append_all() -> None:
        with open_results(file, "r") as results:
            for one in rows:
                if one.key not in results.rows:
                    results.append(one)

    with open_results(file, "r") as results:
        results.append(rows[0])
    size = file.stat().st_size
    said = limited(2 * size + size // 2, append_all)
    assert said is not None
    assert "File too large, the rows before are kept: free some space" in said
    assert str(file) in said
    assert file.stat().st_size == 2 * size
    assert read_rows(file) == rows[:2]
    append_all()
    assert read_rows(file) == rows


def test_a_row_that_found_no_space_is_not_in_the_way_of_the_next(tmp_path, monkeypatch):
    file, write = tmp_path / "rows.jsonl", os.write

    def half(descriptor: int, line: bytes) -> int:
        if len(line) < 300:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, line[: len(line) - 200])

    with open_results(file, "r") as results:
        results.append(result_row("p0"))
        with monkeypatch.context() as patch:
            patch.setattr(results_module.os, "write", half)
            with pytest.raises(
                OSError, match="No space left on device, the rows before"
            ):
                results.append(result_row("p1"))
        results.append(result_row("p2"))
        results.append(result_row("p1"))
    assert [one.prompt for one in read_rows(file)] == ["p0", "p2", "p1"]


def test_a_report_is_whole_or_the_one_before(tmp_path):
    with open_results(tmp_path / "rows.jsonl", "r") as results:
        for number in range(3):
            results.append(result_row(f"p{number}"))
            results.append(
                result_row(f"p{number}", settings=SETTINGS | {"method": "hullft"})
            )
    pages = write_report(tmp_path / "rows.jsonl", tmp_path / "out")
    before = {page: page.read_bytes() for page in pages}
    said = limited(
        2000, lambda: write_report(tmp_path / "rows.jsonl", tmp_path / "out")
    )
    assert said is not None
    assert "File too large, the file is as it was before" in said
    assert {page: page.read_bytes() for page in pages} == before
    assert not partial_files(tmp_path)


def test_a_configuration_is_whole_or_the_one_before(tmp_path):
    """As `tune` writes what it found."""
    file = tmp_path / "tuned.json"
    file.write_text("before")

    def write() -> None:
        with replacing(file) as temporary:
            temporary.write_text("x" * 100)

    said = limited(50, write)
    assert said is not None
    assert f"File too large, the file is as it was before: '{file}'" in said
    assert file.read_text() == "before"
    assert not partial_files(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_index_on_a_disk_that_is_full(source, embedder, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no mount is allowed here")
    try:
        with pytest.raises(
            OSError, match="No space left on device, .*free some space"
        ) as caught:
            index_corpus(source, small / "store", embedder, thresholds=INVERTED)
        assert caught.value.errno == errno.ENOSPC
        subprocess.run(
            ["mount", "-o", "remount,size=4m", str(small)],
            check=True,
            capture_output=True,
        )
        store = index_corpus(
            source, small / "store", embedder, thresholds=INVERTED, mode="resume"
        )
        assert len(store) == COUNT
        del store
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
