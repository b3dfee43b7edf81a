"""Building and opening a datastore, and what happens to damaged ones."""

import json
import random
import shutil
from contextlib import suppress

import pytest
import torch

from hullft_ops.ttft.store.datastore import Datastore
from stores import counted, interrupted


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
    assert opened.texts[-1] == texts[-1]
    assert opened.texts[7:9] == texts[7:9]
    assert opened.summary() == ["60 passages, hashing of dim 24"]


def test_an_interrupted_build_goes_on(embedder, tmp_path):
    """Embeddings are written 128 at a time."""
    texts = [f"text {n}" for n in range(500)]
    with interrupted(embedder, after=384):
        Datastore.build(texts, embedder, tmp_path / "store", resume=True)

    encoded = counted(embedder)
    store = Datastore.build(texts, embedder, tmp_path / "store", resume=True)

    assert sorted(encoded) == sorted(texts[384:])
    assert torch.equal(store.embeddings, torch.from_numpy(embedder.encode(texts)))


def test_texts_in_a_row_of_one_source_follow_one_another(embedder, tmp_path):
    texts = ["a cat", "a dog", "the mat", "a tree"]
    store = Datastore.build(
        texts, embedder, tmp_path / "store", sources=["x", "x", "y", "y"]
    )

    assert [store.following(i) for i in range(4)] == [1, None, 3, None]

    unsourced = Datastore.build(texts, embedder, tmp_path / "unsourced")

    assert [unsourced.following(i) for i in range(4)] == [None] * 4
    assert unsourced.identity != store.identity

    for sources in (["x"] * 2, ["x"] * 5):
        message = f"sources must have one for each of 4 texts, has {len(sources)}"
        with pytest.raises(ValueError, match=message):
            Datastore.build(texts, embedder, tmp_path / "other", sources=sources)


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


def change_info(path, **values):
    info = json.loads((path / "datastore.json").read_text()) | values
    (path / "datastore.json").write_text(json.dumps(info))


def flip(file, place=9000):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


VERSION = "version-1.sqlite"
DAMAGE = {
    "no folder": (shutil.rmtree, "large: no such folder"),
    "no manifest": (
        lambda p: (p / "datastore.json").unlink(),
        "has no datastore.json",
    ),
    "no JSON": (lambda p: (p / "datastore.json").write_text("{"), "json: Invalid JSON"),
    "another format": (lambda p: change_info(p, format=7), "json: format must be 10"),
    "too many fields": (lambda p: change_info(p, code="x"), "json: code: Extra"),
    "no version": (lambda p: (p / VERSION).unlink(), f"{VERSION}: .*No such file"),
    "a bit of a version": (lambda p: flip(p / VERSION), f"{VERSION}: is damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_datastore_is_refused_with_its_reason(large, case):
    damage, message = DAMAGE[case]
    damage(large)

    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Datastore.open(large)

    assert str(large) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_damage_is_an_error_or_has_no_effect(large):
    store = Datastore.open(large)
    contents = [list(store.texts), store.embeddings, store.words.search("word3", 60)]
    files = {file: file.read_bytes() for file in large.iterdir()}
    generator = random.Random(0)
    for _ in range(40):
        file, content = generator.choice([*files.items()])
        place = generator.randrange(len(content))
        flip(file, place)
        if generator.random() < 0.3:
            file.write_bytes(content[:place])

        with suppress(ValueError):
            damaged = Datastore.open(large)
            # White space of the manifest.
            assert file.name == "datastore.json"
            assert list(damaged.texts) == contents[0]
            assert torch.equal(damaged.embeddings, contents[1])
            assert torch.equal(damaged.words.search("word3", 60), contents[2])

        file.write_bytes(content)


def test_what_is_open_is_verified_again(large):
    store = Datastore.open(large)
    store.verify()
    flip(large / VERSION)

    with pytest.raises(ValueError, match=f"{VERSION}: is damaged"):
        store.verify()
