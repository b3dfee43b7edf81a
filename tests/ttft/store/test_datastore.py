"""Building, opening and filtering a datastore, and what happens to damaged and forged ones."""

import json
import multiprocessing
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from hullft_ops.ttft.store import datastore
from hullft_ops.ttft.store.datastore import Datastore
from hullft_ops.ttft.store.format import Rows, write_texts


@pytest.fixture
def store(texts, embedder, tmp_path):
    # Texts may stream.
    return Datastore.build(iter(texts), embedder, tmp_path / "store")


@pytest.fixture
def large(embedder, tmp_path):
    """A datastore of 600 texts; its folder."""
    texts = [f"text {n} of word{n % 9} and word{n % 31}" for n in range(600)]
    Datastore.build(texts, embedder, tmp_path / "large")
    return tmp_path / "large"


def test_what_was_built_is_opened(store, texts, embedder, tmp_path):
    opened = Datastore.open(tmp_path / "store")

    assert list(opened.texts) == texts
    assert torch.equal(opened.embeddings, torch.from_numpy(embedder.encode(texts)))
    assert (opened.embedder, opened.dim, len(opened)) == ("hashing", 24, 60)
    assert opened.identity == store.identity
    assert opened.rows[-1] == {"text": texts[-1], "source": None}
    assert opened.texts[7:9] == texts[7:9]
    assert opened.summary() == [
        "60 passages, hashing of dim 24",
    ]


def test_embeddings_are_mapped_and_the_file_stays(store, tmp_path):
    before = (tmp_path / "store" / "embeddings.f32").read_bytes()
    store.embeddings[0] = 0

    assert (tmp_path / "store" / "embeddings.f32").read_bytes() == before


def test_an_interrupted_build_goes_on(embedder, tmp_path, monkeypatch):
    """Embeddings are written 128 at a time."""
    texts = [f"text {n}" for n in range(500)]
    encode, encoded = embedder.encode, []

    def interrupted(batch):
        if len(encoded) > 384:
            raise KeyboardInterrupt

        encoded.extend(batch)
        return encode(batch)

    monkeypatch.setattr(embedder, "encode", interrupted)

    with pytest.raises(KeyboardInterrupt):
        Datastore.build(texts, embedder, tmp_path / "store", resume=True)

    encoded.clear()
    store = Datastore.build(texts, embedder, tmp_path / "store", resume=True)

    assert sorted(encoded) == sorted(texts[384:])
    assert torch.equal(store.embeddings, torch.from_numpy(encode(texts)))


def test_texts_in_a_row_of_one_source_follow_one_another(embedder, tmp_path):
    texts = ["a cat", "a dog", "the mat", "a tree"]
    store = Datastore.build(
        texts, embedder, tmp_path / "store", sources=["x", "x", "y", "y"]
    )

    assert [store.following(i) for i in range(4)] == [1, None, 3, None]

    unsourced = Datastore.build(texts, embedder, tmp_path / "unsourced")

    assert [unsourced.following(i) for i in range(4)] == [None] * 4
    assert unsourced.identity != store.identity

    with pytest.raises(ValueError, match="sources must have one for each text, has 2"):
        Datastore.build(texts, embedder, tmp_path / "few", sources=["x", "x"])


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([], ValueError, "texts is empty"),
        ("text", TypeError, "texts must be an iterable of str, got one str"),
        (["a", None], TypeError, r"texts\[1\] must be a str, got NoneType"),
        (["\ud800"], ValueError, r"texts\[0\] must be valid Unicode"),
    ],
)
def test_what_makes_no_datastore_leaves_nothing(
    embedder, tmp_path, texts, error, message
):
    with pytest.raises(error, match=f"^Datastore.build: {message}"):
        Datastore.build(texts, embedder, tmp_path / "store")

    assert list(tmp_path.iterdir()) == []


def test_a_datastore_is_not_replaced(store, texts, embedder, tmp_path):
    with pytest.raises(FileExistsError, match="store exists"):
        Datastore.build(["a"], embedder, tmp_path / "store")

    assert list(store.texts) == texts
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def change_info(path, **values):
    info = json.loads((path / "datastore.json").read_text()) | values
    (path / "datastore.json").write_text(json.dumps(info))


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def not_unit(path):
    vectors = np.full((600, 24), np.nan, np.float32)
    (path / "embeddings.f32").write_bytes(vectors.tobytes())


def write_columns(path, **columns):
    table = pa.table(columns)
    with pa.ipc.new_stream(str(path / "texts.arrow"), table.schema) as writer:
        writer.write_table(table)


def cut_off(path):
    content = (path / "texts.arrow").read_bytes()
    (path / "texts.arrow").write_bytes(content[: len(content) // 2])


def a_pipe(path):
    (path / "texts.arrow").unlink()
    os.mkfifo(path / "texts.arrow")


DAMAGE = {
    "no folder": (shutil.rmtree, "large: no such folder"),
    "no info": (lambda p: (p / "datastore.json").unlink(), "has no datastore.json"),
    "no JSON": (lambda p: (p / "datastore.json").write_text("{"), "json: Invalid JSON"),
    "endless JSON": (
        lambda p: (p / "datastore.json").write_text("[" * 10**6),
        "json: Invalid JSON",
    ),
    "another format": (lambda p: change_info(p, format=4), "json: format must be 5"),
    "too many fields": (lambda p: change_info(p, code="x"), "json: code: Extra"),
    "a wrong type": (lambda p: change_info(p, dim="24"), "json: dim must be"),
    "no rows": (lambda p: change_info(p, count=0), "json: count must be"),
    "fewer texts": (
        lambda p: write_texts(p, [{"text": "a"}]),
        "must have 600 texts, has 1",
    ),
    "another dim": (
        lambda p: change_info(p, dim=25),
        "embeddings.f32 must have 60000 bytes for 600 texts, has 57600",
    ),
    "no vectors": (lambda p: (p / "embeddings.f32").unlink(), "texts, has 0"),
    "no texts": (
        lambda p: (p / "texts.arrow").write_bytes(b"junk"),
        "texts.arrow is damaged",
    ),
    "half of the texts": (cut_off, "texts.arrow is damaged"),
    "a pipe": (a_pipe, "it has no texts.arrow"),
    "no source": (
        lambda p: write_columns(p, text=pa.array(["a"] * 600, pa.large_string())),
        "one is text, one source",
    ),
    "lists in a column": (
        lambda p: write_columns(p, text=["a"], tags=[["b"]]),
        "texts.arrow must have columns of strings",
    ),
    "no settings": (
        lambda p: (p / "source.json").write_text("{}"),
        "source.json: settings: Field required",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_datastore_is_refused_with_its_reason(large, case):
    damage, message = DAMAGE[case]
    damage(large)

    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Datastore.open(large)

    assert str(large) in str(caught.value)


def a_letter(path):
    place = (path / "texts.arrow").read_bytes().index(b"text 77 of") + 5
    flip(path / "texts.arrow", place)


def a_source(path):
    columns = pa.ipc.open_stream(path / "texts.arrow").read_all().to_pydict()
    texts, sources = (pa.array(columns[n], pa.large_string()) for n in columns)
    write_columns(path, text=texts, source=sources.fill_null("a document"))


def a_null(path):
    texts = pa.array(["a"] * 599 + [None], pa.large_string())
    write_columns(path, text=texts, source=texts)


CHANGED = "its texts, sources or vectors have changed"
CHANGES = {
    "no unit vectors": (not_unit, "must be unit vectors, row 0 has norm nan"),
    "a bit of a vector": (
        lambda p: flip(p / "embeddings.f32", 9000),
        f"damaged: {CHANGED}",
    ),
    "a letter": (a_letter, f"damaged: {CHANGED}"),
    "a document": (a_source, f"damaged: {CHANGED}"),
    "a null": (a_null, "texts.arrow must have a text in each row"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_verifying_reads_what_opening_does_not(large, case):
    Datastore.open(large).verify()
    change, message = CHANGES[case]
    change(large)
    store = Datastore.open(large)

    with pytest.raises(ValueError, match=message) as caught:
        store.verify()

    assert str(large) in str(caught.value)


def test_opening_reads_no_text_and_no_vector(large, monkeypatch):
    """Which would take longer the more there are."""

    def refuse(*_, **__):
        raise AssertionError("must not be read")

    monkeypatch.setattr(Rows, "_values", refuse)
    for name in ("checked_vectors", "identity_of"):
        monkeypatch.setattr(datastore, name, refuse)

    (large / "embeddings.f32").write_bytes(bytes(600 * 24 * 4))

    assert len(Datastore.open(large)) == 600


def mutated(content, generator):
    """A few bytes changed, put in or left out, most of them near the beginning."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        last = 1000 if generator.random() < 0.6 else len(content)
        place = generator.randrange(min(last, len(content)))
        match generator.randrange(3):
            case 0:
                value = generator.choice([0, 1, 2**31, 2**40, 2**62, 2**64 - 1])
                changed[place : place + 8] = value.to_bytes(8, "little")
            case 1:
                del changed[place : place + generator.randint(1, 40)]
            case _:
                changed[place:place] = generator.randbytes(generator.randint(1, 40))

    return bytes(changed)


@pytest.mark.parametrize("name", ["texts.arrow", "datastore.json"])
def test_forged_files_crash_nothing(large, name):
    """In a process of its own, which a crash would end."""
    original = (large / name).read_bytes()

    def open_many():
        generator = random.Random(0)
        for _ in range(40):
            (large / name).write_bytes(mutated(original, generator))
            try:
                assert len(list(Datastore.open(large).texts)) == 600
            except ValueError:
                continue

    process = multiprocessing.get_context("fork").Process(target=open_many)
    process.start()
    process.join(timeout=120)

    assert process.exitcode == 0
