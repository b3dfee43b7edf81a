"""A corpus becomes a datastore, whatever interrupts it; ``--kills 20`` kills more often."""

import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import time
from contextlib import closing

import pytest
import torch

from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.index import folder_datastore, index_corpus
from hullft_ops.ttft.validation import InputError
from stores import assert_same_stores, counted, interrupted

WORDS = ["tide", "moon", "harbour", "sand", "gull", "rope", "salt", "pier", "net"]


@pytest.fixture
def corpus(tmp_path):
    """1,000 records of 12 words and their number."""
    generator = random.Random(0)
    with (tmp_path / "c.jsonl").open("w") as file:
        for number in range(1000):
            text = " ".join(generator.choices(WORDS, k=12))
            file.write(json.dumps({"text": f"{text} {number}", "n": number}) + "\n")

    return tmp_path / "c.jsonl"


def test_texts_come_with_their_source(corpus, embedder, tmp_path):
    store = index_corpus(corpus, tmp_path / "store", embedder)

    assert len(store) == 1000
    assert store.texts[41].endswith(" 41")
    assert store.sources[41] == "c.jsonl:42"

    texts = list(store.texts)

    assert torch.equal(store.embeddings, torch.from_numpy(embedder.encode(texts)))
    assert store.summary()[1].startswith(f"{corpus}: 1000 records read, 0 ")


def test_records_are_cut_into_passages_that_follow_one_another(
    corpus, embedder, tmp_path
):
    store = index_corpus(
        corpus, tmp_path / "store", embedder, min_chars=0, passage_chars=40
    )
    records = [json.loads(line)["text"] for line in corpus.open()]
    first = [0]
    while (after := store.following(first[-1])) is not None:
        first.append(after)

    assert len(first) > 1
    assert "".join(store.texts[position] for position in first) == records[0]
    assert max(map(len, store.texts)) <= 40


def test_repeated_and_short_passages_are_left_out(embedder, tmp_path):
    texts = ["a passage of some length", "short", "  blank  " + " " * 20]
    lines = [{"text": text} for text in [*texts, texts[0], "another passage here"]]
    lines.append({"text": None})
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    store = index_corpus(tmp_path / "c.jsonl", tmp_path / "store", embedder)

    assert list(store.texts) == [texts[0], "another passage here"]
    assert store.summary()[1].endswith(
        "5 records read, 1 skipped (c.jsonl:6: no text in column text); "
        "2 short and 1 repeated passages left out"
    )


def test_another_engine_that_gives_too_few_vectors_is_refused(
    corpus, embedder, tmp_path
):
    with pytest.raises(
        ValueError, match=r"must be an ndarray of float32 \[128, 24\], got"
    ):
        index_corpus(
            corpus,
            tmp_path / "bad",
            embedder,
            embed=lambda batches: (embedder.encode(batch[1:]) for batch in batches),
        )


def test_nothing_to_index_is_refused(embedder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"\xff\xd8\0")

    with pytest.raises(InputError, match=r"nothing to index: .* 1 skipped \(photo.jpg"):
        index_corpus(tmp_path / "mine", tmp_path / "store", embedder)

    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_vectors_of_an_interrupted_call_are_found_by_their_text(
    corpus, embedder, tmp_path
):
    path = tmp_path / "store"
    with interrupted(embedder, after=512):
        index_corpus(corpus, path, embedder)

    lines = corpus.read_text().splitlines()
    corpus.write_text("\n".join(['{"text": "one more passage came"}', *lines[10:]]))
    calls = counted(embedder)
    store = index_corpus(corpus, path, embedder)

    assert len(calls) == 1 + 1000 - 512
    assert store.texts[0] == "one more passage came"


def test_vectors_of_another_embedder_are_not_taken(corpus, other_embedder, tmp_path):
    path = tmp_path / "store"
    other, embedder = other_embedder("other"), other_embedder()
    with interrupted(other, after=512):
        index_corpus(corpus, path, other)

    calls = counted(embedder)
    index_corpus(corpus, path, embedder)

    assert len(calls) == 1000


def killed_after(seconds, run):
    """How long it ran, in a process that is killed after that time; None lets it end."""
    process = multiprocessing.get_context("fork").Process(target=run)
    start = time.monotonic()
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return time.monotonic() - start


def vectors_in(folder, copy):
    """How many vectors an interrupted version has, counted in a copy of its folder: SQLite first
    takes back what a kill has left half written, and may not where it may only read."""
    file = copy / "version-1.sqlite"
    try:
        shutil.copytree(folder, copy)
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True)) as database:
            return database.execute("SELECT count(*) FROM vectors").fetchone()[0]
    except (FileNotFoundError, sqlite3.OperationalError):
        return 0


def test_kills(pytestconfig, corpus, embedder, tmp_path):
    """At random moments. No group of vectors that is in the file is embedded again."""
    encode = embedder.encode

    def index(path):
        return index_corpus(corpus, path, embedder)

    def slowly(texts):
        time.sleep(0.1)
        return encode(texts)

    whole = index(tmp_path / "whole")
    embedder.encode = slowly
    duration = killed_after(None, lambda: index(tmp_path / "timed"))
    moments = random.Random(0)
    resumed = 0

    for number in range(pytestconfig.getoption("--kills")):
        path = tmp_path / f"killed{number}"
        embedder.encode = slowly
        killed_after(moments.uniform(0, duration), lambda path=path: index(path))
        if path.exists():
            assert_same_stores(Datastore.open(path), whole)
            continue

        partial = path.with_name(f".{path.name}.hullft_ops.partial")
        done = vectors_in(partial, tmp_path / f"copy{number}")
        embedder.encode = encode
        calls = counted(embedder)
        assert_same_stores(index(path), whole)

        assert len(calls) == 1000 - done

        resumed += done > 0

    assert resumed > 0
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def folder(tmp_path):
    for number in range(20):
        file = tmp_path / "mine" / f"{number % 3}" / f"{number}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"the page about number {number} and what comes after it")

    return tmp_path / "mine"


def test_the_datastore_of_a_changed_folder_is_brought_up_to_date(
    folder, embedder, tmp_path
):
    root = tmp_path / "stores"
    first = folder_datastore(str(folder), embedder, root)
    copy = shutil.copytree(first.folder, root / f"{first.folder.name}.backup")

    assert len(first) == 20
    assert folder_datastore(str(folder), embedder, root).identity == first.identity

    (folder / "new.md").write_text("one more page came to the folder of pages")

    assert len(folder_datastore(str(folder), embedder, root)) == 21
    assert len(first.texts) == len(Datastore.open(copy)) == 20

    first.refresh()

    assert len(first) == 21

    # A folder of the same name elsewhere has a datastore of its own.
    other = tmp_path / "elsewhere" / "mine"
    other.mkdir(parents=True)
    (other / "a.md").write_text("a page of the other folder")

    assert len(folder_datastore(str(other), embedder, root)) == 1

    # So has what other patterns choose.
    patterns = {"include": ("*.md",), "exclude": ("2.md",)}

    assert len(folder_datastore(str(folder), embedder, root, **patterns)) == 20
    assert len(list(root.iterdir())) == 4


def test_a_finished_datastore_holds_no_parts_of_files(corpus, embedder, tmp_path):
    path = tmp_path / "store"
    with interrupted(embedder, after=0):
        index_corpus(corpus, path, embedder)

    for times, version in [(None, 1), (None, 1), ((1, 1), 2)]:
        # With the same times, the corpus is not read again.
        if times:
            os.utime(corpus, times)

        index_corpus(corpus, path, embedder)
        names = {entry.name for entry in path.iterdir()}

        assert names == {"datastore.json", f"version-{version}.sqlite"}
