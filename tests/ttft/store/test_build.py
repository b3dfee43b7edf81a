"""Indexing that is killed, resumed, rolled back, added to, and refused."""

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from forked import forked, status_of
from hullft_ops.ttft import Datastore
from hullft_ops.ttft.store import build as passage_rows
from hullft_ops.ttft.store import writer as store_writer
from hullft_ops.ttft.store.build import MODES, Cutting, index_corpus
from hullft_ops.ttft.store.format import Journal
from hullft_ops.ttft.store.search import IndexThresholds
from hullft_ops.ttft.store.sources import Source, SourceError
from hullft_ops.ttft.store.writer import locked

COUNT = 300
# A change after the first vectors are committed, and before the last are.
LATE = 18
INVERTED = IndexThresholds(flat=100)


def write_corpus(path: Path, numbers: range) -> Source:
    records = [
        {"text": f"passage number {i} of word{i % 7}", "domain": "ab"[i % 2]}
        for i in numbers
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source(path, metadata=("domain",))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_corpus(tmp_path / "c.jsonl", range(COUNT))


@pytest.fixture
def more(tmp_path: Path) -> Source:
    """200 records, the first 50 of which are in the other source too."""
    return write_corpus(tmp_path / "more.jsonl", range(COUNT - 50, COUNT + 150))


def content(store: Datastore) -> tuple[list[dict[str, object]], bytes]:
    return list(store.rows), store.embeddings.numpy().tobytes()


def files(path: Path) -> set[str]:
    return {
        entry.relative_to(path).as_posix()
        for entry in path.rglob("*")
        if entry.is_file()
    }


class KilledAtCall:
    """Replaces what makes a state lasting; the call of that number is a kill -9 instead."""

    def __init__(self, number: int) -> None:
        self.left = number

    def wrapped(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return function(*arguments, **keywords)

        return call


def killed(number: int, run: Callable[[], object]) -> bool:
    """Whether a process that does ``run`` was killed at that lasting change."""

    def run_killed() -> None:
        killer = KilledAtCall(number)
        os.fsync = killer.wrapped(os.fsync)
        os.truncate = killer.wrapped(os.truncate)
        Path.replace = killer.wrapped(Path.replace)
        Path.unlink = killer.wrapped(Path.unlink)
        run()

    status = status_of(forked(run_killed))
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.fixture
def _commit_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "_SECONDS_PER_COMMIT", -1.0)


@pytest.mark.usefixtures("_commit_every_batch")
@pytest.mark.parametrize("again", ["resume", "restart"])
def test_a_build_killed_at_any_change_ends_as_if_it_was_not(
    source, embedder, tmp_path, again
):
    whole = index_corpus(source, tmp_path / "whole", embedder)
    for number in range(100):
        path = tmp_path / f"killed{number}"
        if not killed(number, lambda path=path: index_corpus(source, path, embedder)):
            break
        finished = (path / "manifest.json").exists()
        if not finished:
            with pytest.raises(ValueError, match=r"not finished|has no manifest"):
                Datastore.open(path)
        mode = "resume" if finished else again
        assert content(index_corpus(source, path, embedder, mode=mode)) == content(
            whole
        )
        assert len(files(path)) == 3
    assert number > 15


@pytest.mark.usefixtures("_commit_every_batch")
def test_an_append_killed_at_any_change_ends_as_if_it_was_not(
    source, more, embedder, tmp_path
):
    def append(path: Path, mode: str) -> Datastore:
        return index_corpus(more, path, embedder, thresholds=INVERTED, mode=mode)

    before = content(
        index_corpus(source, tmp_path / "before", embedder, thresholds=INVERTED)
    )
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    whole = append(tmp_path / "whole", "append")
    assert len(whole) == COUNT + 150
    for number in range(100):
        path = tmp_path / f"killed{number}"
        shutil.copytree(tmp_path / "before", path)
        if not killed(number, lambda path=path: append(path, "append")):
            break
        seen = content(Datastore.open(path))
        assert seen in (before, content(whole))
        if (path / "journal.json").exists():
            again = ("resume", "restart")[number % 2] if seen == before else "resume"
            assert content(append(path, again)) == content(whole)
            assert len(files(path)) == 5
    assert number > 15


@pytest.mark.usefixtures("_commit_every_batch")
def test_what_was_reported_is_not_embedded_again(
    source, embedder, other_embedder, tmp_path
):
    class Stopped:
        name, dim = embedder.name, embedder.dim
        calls = 0

        def encode(self, texts):
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("stopped")
            return embedder.encode(texts)

    with pytest.raises(RuntimeError, match="stopped"):
        index_corpus(source, tmp_path / "store", Stopped())
    journal = Journal.read(tmp_path / "store")
    assert journal.embedded == 256
    fresh = other_embedder()
    store = index_corpus(source, tmp_path / "store", fresh, mode="resume")
    assert fresh.batch_sizes == [COUNT - 256]
    assert len(store) == COUNT


@pytest.mark.usefixtures("_commit_every_batch")
def test_vectors_of_an_interrupted_write_that_rotted_are_refused(
    source, embedder, tmp_path
):
    path = tmp_path / "store"
    assert killed(LATE, lambda: index_corpus(source, path, embedder))
    assert Journal.read(path).embedded > 0
    (file,) = path.glob("data-*/embeddings.f32")
    rotten = bytearray(file.read_bytes())
    rotten[0] ^= 1
    file.write_bytes(rotten)
    with pytest.raises(ValueError, match="checksum is wrong"):
        index_corpus(source, path, embedder, mode="resume")
    assert len(index_corpus(source, path, embedder, mode="restart")) == COUNT


def test_an_interrupted_write_is_found_and_resumed_with_its_settings_only(
    source, more, embedder, other_embedder, tmp_path
):
    path = tmp_path / "store"
    assert killed(8, lambda: index_corpus(source, path, embedder))
    for mode in ("new", "append"):
        with pytest.raises(
            ValueError, match="interrupted.*resume finishes it, restart rolls"
        ):
            index_corpus(source, path, embedder, mode=mode)
    with pytest.raises(
        ValueError, match=r"other settings: source was '.*c.jsonl', is '.*more"
    ):
        index_corpus(more, path, embedder, mode="resume")
    with pytest.raises(ValueError, match="min_chars was 16, is 3"):
        index_corpus(
            source, path, embedder, mode="resume", cutting=Cutting(min_chars=3)
        )
    with pytest.raises(
        ValueError, match="embedder is other of dim 24, the datastore's is hashing"
    ):
        index_corpus(source, path, other_embedder("other"), mode="resume")
    assert len(index_corpus(source, path, embedder, mode="resume")) == COUNT


def test_repetitions_and_near_empty_texts_are_left_out_and_counted(embedder, tmp_path):
    texts = [
        "a text that is long enough",
        "short",
        "   \n ",
        "a text that is long enough",
        "x" * 16,
    ]
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    store = index_corpus(Source(file), tmp_path / "store", embedder)
    assert list(store.texts) == [texts[0], texts[4]]
    (counted,) = store.manifest.sources
    assert (counted["records"], counted["near_empty"], counted["repeated"]) == (5, 2, 1)
    assert store.rows["source"][:] == ["c.jsonl:1", "c.jsonl:5"]


def test_a_folders_empty_file_is_counted_when_texts_are_cut(
    embedder, tokenizer, tmp_path
):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("a text that is long enough")
    (folder / "b.txt").write_text("")
    cutting = Cutting(tokenizer, chunk_tokens=64)
    store = index_corpus(Source(folder), tmp_path / "store", embedder, cutting=cutting)
    (counted,) = store.manifest.sources
    assert (counted["records"], counted["near_empty"], len(store)) == (2, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_tokens": 64}, "chunk_tokens needs a fast tokenizer"),
        (
            {"chunk_tokens": 64, "tokenizer": SimpleNamespace(is_fast=False)},
            "a fast tokenizer",
        ),
        ({"overlap": 3}, "overlap 3 needs chunk_tokens"),
        (
            {"chunk_tokens": 0, "tokenizer": True},
            r"chunk_tokens must be in 1\.\.\d+, got 0",
        ),
        ({"min_chars": -1}, r"min_chars must be in 0\.\.\d+, got -1"),
        ({"overlap": -1}, r"overlap must be in 0\.\.\d+, got -1"),
        (
            {"chunk_tokens": 4, "overlap": 4, "tokenizer": True},
            "overlap must be .* got 4 of 4",
        ),
    ],
)
def test_a_cutting_that_cannot_be_done_is_refused(tokenizer, options, message):
    given = options | (
        {"tokenizer": tokenizer} if options.get("tokenizer") is True else {}
    )
    with pytest.raises(ValueError, match=message):
        Cutting(**given)


def test_appending_what_is_there_changes_nothing(source, embedder, tmp_path):
    before = content(index_corpus(source, tmp_path / "store", embedder))
    with pytest.raises(SourceError, match=f"{COUNT} are repeated or among the {COUNT}"):
        index_corpus(source, tmp_path / "store", embedder, mode="append")
    assert content(Datastore.open(tmp_path / "store")) == before
    assert len(files(tmp_path / "store")) == 3


def test_repeated_texts_are_known_however_long_ago_they_came():
    numbers, seen, known = random.Random(0), passage_rows.SeenTexts(), set()
    for _ in range(1000):
        text = str(numbers.randrange(400))
        assert seen.add(text) == (text in known)
        known.add(text)


def test_metadata_of_mixed_types_is_refused(embedder, tmp_path):
    file = tmp_path / "c.jsonl"
    records = [
        {"text": f"a passage of {year!r}", "year": year} for year in (1999, "1999")
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ValueError, match="metadata year mixes types"):
        index_corpus(Source(file, metadata=("year",)), tmp_path / "store", embedder)


def test_modes_say_what_they_need(source, more, embedder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no datastore at .* to append to"):
        index_corpus(source, tmp_path / "store", embedder, mode="append")
    assert not (tmp_path / "store").exists()
    assert (
        len(index_corpus(source, tmp_path / "store", embedder, mode="resume")) == COUNT
    )
    with pytest.raises(FileExistsError, match="append adds to it"):
        index_corpus(source, tmp_path / "store", embedder)
    assert (
        len(index_corpus(source, tmp_path / "store", embedder, mode="resume")) == COUNT
    )
    with pytest.raises(ValueError, match="no interrupted write in .* another source"):
        index_corpus(more, tmp_path / "store", embedder, mode="resume")
    with pytest.raises(FileExistsError, match="not empty and not a datastore"):
        index_corpus(source, tmp_path, embedder)
    with pytest.raises(
        ValueError, match="mode must be one of new, append, resume, restart"
    ):
        index_corpus(source, tmp_path / "store", embedder, mode="redo")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "nothing to index: of 0 records"),
        (
            '{"text": "short"}\n' * 3,
            "of 3 records 0 are malformed, 3 texts have fewer than 16",
        ),
        (
            '{"body": "a text that is long enough"}\n',
            r'1 of 1 records .* c.jsonl:1: no string "te',
        ),
    ],
)
def test_a_corpus_that_fits_nothing_leaves_nothing(
    embedder, tmp_path, content, message
):
    (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(SourceError, match=message):
        index_corpus(Source(tmp_path / "c.jsonl"), tmp_path / "store", embedder)
    assert files(tmp_path / "store") == set()
    (tmp_path / "c.jsonl").write_text('{"text": "a text that is long enough"}\n')
    assert (
        len(index_corpus(Source(tmp_path / "c.jsonl"), tmp_path / "store", embedder))
        == 1
    )


def test_metadata_of_a_changing_type_is_refused(embedder, tmp_path):
    records = [
        {"text": f"text of some length {i}", "year": i if i < 1500 else "x"}
        for i in range(1600)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(
        ValueError, match="rows 1024 to 1599, a value of the metadata year is not int64"
    ):
        index_corpus(
            Source(tmp_path / "c.jsonl", metadata=("year",)), tmp_path / "s", embedder
        )
    # Nothing is left to resume, which would fail again.
    assert (
        len(index_corpus(Source(tmp_path / "c.jsonl"), tmp_path / "s", embedder))
        == 1600
    )
    (tmp_path / "c.jsonl").write_text(
        '{"text": "text of some length", "year": {"a": 1}}\n'
    )
    with pytest.raises(
        ValueError, match="metadata year must be strings, numbers or booleans"
    ):
        index_corpus(
            Source(tmp_path / "c.jsonl", metadata=("year",)), tmp_path / "t", embedder
        )


def test_an_append_needs_the_same_columns(source, embedder, tmp_path):
    index_corpus(source, tmp_path / "store", embedder)
    (tmp_path / "d.jsonl").write_text('{"text": "text of some length"}\n')
    with pytest.raises(
        ValueError, match="has the columns text, source, domain, got text, source"
    ):
        index_corpus(
            Source(tmp_path / "d.jsonl"), tmp_path / "store", embedder, mode="append"
        )


def test_two_writers_do_not_meet(source, embedder, tmp_path):
    (tmp_path / "store").mkdir()
    with (
        locked(tmp_path / "store"),
        pytest.raises(ValueError, match="another process is writing the datastore"),
    ):
        index_corpus(source, tmp_path / "store", embedder)


class HeldEmbedder:
    """Does not embed before it is let go."""

    def __init__(self, embedder) -> None:
        self.name, self.dim = embedder.name, embedder.dim
        self.reached, self.let_go = threading.Event(), threading.Event()
        self._embedder = embedder

    def encode(self, texts):
        self.reached.set()
        assert self.let_go.wait(60)
        return self._embedder.encode(texts)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("writes", ["new", "append"])
def test_a_write_under_way_is_not_an_interrupted_one(
    source, more, embedder, tmp_path, writes, mode
):
    path, held = tmp_path / "store", HeldEmbedder(embedder)
    if writes == "append":
        index_corpus(source, path, embedder)
    written = more if writes == "append" else source
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(index_corpus, written, path, held, mode=writes)
        try:
            assert held.reached.wait(60)
            before = files(path)
            assert "journal.json" in before
            with pytest.raises(
                ValueError, match="another process is writing the datastore"
            ):
                index_corpus(more, path, embedder, mode=mode)
            assert files(path) == before
        finally:
            held.let_go.set()
        assert len(writing.result()) == (COUNT + 150 if writes == "append" else COUNT)


def test_what_became_of_the_place_meanwhile_is_seen(
    source, more, embedder, tmp_path, monkeypatch
):
    path, mkdir = tmp_path / "store", Path.mkdir

    def late(self, *arguments, **keywords):
        monkeypatch.undo()
        index_corpus(source, path, embedder)
        mkdir(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "mkdir", late)
    with pytest.raises(FileExistsError, match="exists: append adds to it"):
        index_corpus(more, path, embedder)
    assert len(Datastore.open(path)) == COUNT


def test_filter_searches_what_has_the_values(source, embedder, tmp_path):
    store = index_corpus(source, tmp_path / "store", embedder)
    (tmp_path / "n.jsonl").write_text(
        '{"text": "a text of some length", "length": 21}\n'
    )
    numbered = Source(tmp_path / "n.jsonl", metadata=("length",))
    measured = index_corpus(numbered, tmp_path / "measured", embedder)
    odd = store.filter(domain="b")
    assert len(odd) == COUNT // 2
    queries = embedder.encode(["passage number 4 of word4", "word3"])
    scores, ids = odd.search(queries, 20)
    products = queries @ store.embeddings.numpy().T
    products[:, ::2] = -np.inf
    np.testing.assert_allclose(scores, -np.sort(-products)[:, :20], rtol=1e-6)
    assert (ids % 2 == 1).all()
    assert {odd.rows[i]["domain"] for i in ids[0].tolist()} == {"b"}
    assert len(store.filter(domain=["a", "b"])) == COUNT
    assert len(odd.filter(source=["c.jsonl:2", "c.jsonl:3"])) == 1
    with pytest.raises(ValueError, match="k is 151, the store has 150 texts"):
        odd.search(queries, 151)
    some = measured.rows[0]["length"]
    for wanted in (np.int64(some), [np.int64(some)]):
        assert len(measured.filter(length=wanted)) == len(measured.filter(length=some))
    with pytest.raises(ValueError, match="no metadata 'year', has source, domain"):
        store.filter(year=3)
    with pytest.raises(ValueError, match="domain is string, got 3"):
        store.filter(domain=3)
    with pytest.raises(ValueError, match="length is int64, got 1180591620717411303424"):
        measured.filter(length=2**70)
    with pytest.raises(ValueError, match="no text has"):
        store.filter(domain="c")


def test_sizes_that_numpy_made_are_integers(source, embedder, tmp_path):
    cutting = Cutting(min_chars=np.int64(3))
    store = index_corpus(source, tmp_path / "store", embedder, cutting=cutting)
    with pytest.raises(TypeError, match="Cutting: min_chars must be an int, got float"):
        Cutting(min_chars=3.0)
    assert len(store) > 0


def test_a_finished_datastore_of_another_embedder_is_refused(
    source, embedder, other_embedder, tmp_path
):
    path = tmp_path / "store"
    index_corpus(source, path, embedder)
    with pytest.raises(
        ValueError, match=f"embedder is {other_embedder('other', 24).name} of dim"
    ):
        index_corpus(source, path, other_embedder("other", 24), mode="resume")


def test_what_fails_under_the_lock_is_not_taken_for_a_writer(tmp_path):
    with pytest.raises(BlockingIOError, match="a pipe is full"), locked(tmp_path):
        raise BlockingIOError("a pipe is full")


def test_a_finished_datastore_is_not_begun_anew(source, more, embedder, tmp_path):
    path = tmp_path / "store"
    before = content(index_corpus(source, path, embedder))
    with pytest.raises(FileExistsError, match="exists: append adds to it"):
        index_corpus(more, path, embedder, mode="restart")
    assert content(Datastore.open(path)) == before


def of_years(path: Path, years: list[object]) -> Source:
    records = [
        {"text": f"passage {i} of {path.name}", "year": y} for i, y in enumerate(years)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source(path, metadata=("year",))


def test_a_fraction_is_no_integer(embedder, tmp_path):
    path = tmp_path / "store"
    # More than are looked at to find the type.
    years = of_years(tmp_path / "a.jsonl", [2021] * 1500)
    store = index_corpus(years, path, embedder)
    with pytest.raises(ValueError, match="2021.5 is no integer"):
        store.filter(year=[2021, 2021.5])
    assert len(store.filter(year=2021.0)) == 1500
    before = content(store)
    with pytest.raises(
        ValueError,
        match="metadata year is not int64 like the others: 2.7 is no integer",
    ):
        index_corpus(
            of_years(tmp_path / "b.jsonl", [3, 2.7]), path, embedder, mode="append"
        )
    late = of_years(tmp_path / "c.jsonl", [2021] * 1500 + [3.9])
    with pytest.raises(
        ValueError, match="year is not int64 like the others: 3.9 is no integer"
    ):
        index_corpus(late, tmp_path / "late", embedder)
    assert content(Datastore.open(path)) == before


@pytest.mark.parametrize("years", [[2**70], [2021] * 1500 + [2**70]])
def test_an_integer_of_more_than_64_bits_leaves_nothing(embedder, tmp_path, years):
    path = tmp_path / "store"
    with pytest.raises(ValueError, match="year is out of range|year is not int64"):
        index_corpus(of_years(tmp_path / "a.jsonl", years), path, embedder)
    assert not path.exists() or not any(path.iterdir())
