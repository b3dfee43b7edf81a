"""A datastore that is brought up to date is the same as one that is made anew."""

import multiprocessing
import random
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hullft_ops.ttft.files import locked
from hullft_ops.ttft.finetuner import TestTimeFinetuner
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.index import index_corpus
from stores import assert_same_stores, counted

LINES = [
    f"def {name}_of(harbour, {name}):\n" for name in ("tide", "moon", "salt", "rope")
]
NAMES = st.sampled_from(["a.py", "b.py", "deep/c.py", "d.md"])
TEXTS = st.lists(st.sampled_from([*LINES, "x\n", "\0 ü\n"]), max_size=12).map("".join)


@pytest.fixture
def folder(tmp_path):
    """30 files of which each has ten passages of its own."""
    for number in range(30):
        write(tmp_path / "mine", f"{number % 3}/{number}.py", page(number))

    return tmp_path / "mine"


def page(number, edits=0):
    return "".join(
        f"def part_{part}(page_{number}, edit_{edits if part == 3 else 0}):\n"
        for part in range(10)
    )


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def indexed(folder, path, embedder=None):
    return index_corpus(folder, path, embedder, passage_chars=50)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits=st.lists(st.dictionaries(NAMES, TEXTS), min_size=1, max_size=4))
def test_searches_are_those_of_a_store_that_is_made_anew(
    edits, other_embedder, tmp_path_factory
):
    """Each edit writes files, and removes those to which it gives no text."""
    path = tmp_path_factory.mktemp("edits")
    folder, embedder = path / "mine", other_embedder()
    write(folder, "e.py", "def what_stays(in_every_version):\n" * 3)
    for number, edit in enumerate(edits):
        for name, text in edit.items():
            write(folder, name, text)
            if not text:
                (folder / name).unlink()

        store = indexed(folder, path / "store", embedder)
        assert_same_stores(store, indexed(folder, path / f"new{number}", embedder))


def test_only_what_changed_is_embedded(folder, embedder, tmp_path):
    indexed(folder, tmp_path / "store", embedder)
    for number in (3, 14):
        write(folder, f"{number % 3}/{number}.py", page(number, edits=1))

    (folder / "0" / "0.py").rename(folder / "moved.py")
    (folder / "1" / "1.py").unlink()
    texts = counted(embedder)
    store = indexed(folder, tmp_path / "store", embedder)

    assert len(texts) == 2
    assert len(store) == 290
    assert store.sources[-1] == "moved.py"

    store.verify()
    assert_same_stores(store, indexed(folder, tmp_path / "anew", embedder))


def test_a_program_updates_and_removes_documents(embedder, tmp_path):
    store = Datastore.build(
        ["a cat", "a dog", "a mat"],
        embedder,
        tmp_path / "store",
        sources=["x", "x", "y"],
    )
    old = Datastore.open(tmp_path / "store")
    texts = counted(embedder)
    store.update({"y": "a tree", "z": "a cat", "empty": ""}, embedder)

    assert [*store.documents()] == [
        ("x", "a cata dog"),
        ("y", "a tree"),
        ("z", "a cat"),
        ("empty", ""),
    ]
    # "a cat" stands in x already.
    assert list(store.texts) == ["a cat", "a dog", "a tree"]
    assert list(store.sources) == ["x", "x", "y"]
    assert texts == ["a tree"]

    store.remove(["x"])

    assert list(store.sources) == ["y", "z"]
    assert texts == ["a tree"]
    assert store.words.search("cat mat", 5).tolist() == [1]
    assert torch.equal(
        store.embeddings, torch.from_numpy(embedder.encode(["a tree", "a cat"]))
    )
    # What is open stays as it was.
    assert list(old.texts) == ["a cat", "a dog", "a mat"]
    assert old.words.search("mat", 5).tolist() == [2]
    assert torch.equal(
        old.vectors(torch.tensor([2])), torch.from_numpy(embedder.encode(["a mat"]))
    )

    old.refresh()

    assert (list(old.texts), old.identity) == (["a tree", "a cat"], store.identity)


def test_what_cannot_be_updated_stays_as_it_was(embedder, other_embedder, tmp_path):
    store = Datastore.build(["a cat"], embedder, tmp_path / "store", sources=["x"])
    identity = store.identity
    for documents, encoder, message in [
        ({"y": "\ud800"}, embedder, "document y must be valid Unicode"),
        ({"y": "text"}, None, "the embedder must be given, it is hashing"),
        ({"y": "text"}, other_embedder("other"), "embedder is other of dim 24"),
        ({"x": ""}, embedder, "no passage would be left"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.update(documents, encoder)

    with pytest.raises(ValueError, match="no document z"):
        store.remove(["z"])

    with (
        locked(store.folder, store.folder),
        pytest.raises(ValueError, match="another process writes it"),
    ):
        store.remove(["x"])

    assert Datastore.open(store.folder).identity == identity

    # Nothing of the writes that failed holds the next one up.
    store.update({"y": "a dog"}, embedder)

    assert list(store.texts) == ["a cat", "a dog"]


def test_a_prompt_retrieves_from_the_version_that_is_refreshed(
    model, tokenizer, tmp_path
):
    store = Datastore.build(
        ["a cat", "a dog"], None, tmp_path / "store", sources=["x", "y"]
    )
    finetuner = TestTimeFinetuner(model, tokenizer, store)
    before = finetuner.retrieve("the dog")
    store.update({"x": "a tree with a dog"})

    assert before.store.texts[before.positions[0]] == "a dog"

    after = finetuner.retrieve("the tree")

    assert [after.store.texts[position] for position in after.positions] == [
        "a tree with a dog"
    ]


def test_words_of_deleted_passages_are_forgotten(tmp_path):
    texts = [f"the page {number}" for number in range(40)]
    store = Datastore.build(texts, None, tmp_path / "store", sources=texts)
    store.remove(texts[:30])

    assert store.words.search("page", 40).tolist() == [*range(10)]
    [(size,)] = store._database.execute("SELECT max(length(holders)) FROM words")
    assert size == 8 * 10


def test_kills(pytestconfig, folder, embedder, tmp_path):
    """An update that is killed at a random moment leaves the old version or the new one."""
    path = tmp_path / "store"
    encode = embedder.encode
    old = indexed(folder, path, embedder)
    moments = random.Random(0)
    context = multiprocessing.get_context("fork")
    embedder.encode = lambda texts: time.sleep(0.1) or encode(texts)
    duration = 1.0
    for number in range(1, 1 + pytestconfig.getoption("--kills")):
        for file in range(number % 3, 30, 3):
            write(folder, f"{file % 3}/{file}.py", page(file, edits=number))

        process = context.Process(target=indexed, args=(folder, path, embedder))
        start = time.monotonic()
        process.start()
        process.join(moments.uniform(0, duration))
        process.kill()
        process.join()
        if process.exitcode == 0:
            duration = time.monotonic() - start

        store = Datastore.open(path)
        store.verify()
        new = indexed(folder, tmp_path / f"new{number}", embedder)

        assert store.identity in (old.identity, new.identity)

        old = indexed(folder, path, embedder)
        assert_same_stores(old, new)
