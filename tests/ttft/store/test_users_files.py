"""What a user keeps in a datastore's directory stays there, whatever is written into it."""

import json
import os
from pathlib import Path

import pytest

from hullft_ops.ttft import Datastore
from hullft_ops.ttft.store import build as indexing
from hullft_ops.ttft.store.build import Cutting, index_corpus
from hullft_ops.ttft.store.sources import Source, SourceError
from hullft_ops.ttft.store.writer import StoreWriter

COUNT = 40
UUID = f"{'0' * 12}4000{'8' * 16}"


def write_corpus(path: Path, numbers: range) -> Source:
    texts = (f"passage number {number} of some length" for number in numbers)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(path)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_corpus(tmp_path / "a.jsonl", range(COUNT))


@pytest.fixture
def more(tmp_path: Path) -> Source:
    return write_corpus(tmp_path / "b.jsonl", range(COUNT, 2 * COUNT))


def files(path: Path) -> set[str]:
    return {
        entry.relative_to(path).as_posix()
        for entry in path.rglob("*")
        if entry.is_file()
    }


def interrupted(source: Source, path: Path, embedder) -> None:
    path.mkdir(exist_ok=True)
    StoreWriter.begin(
        path, embedder, indexing._settings(source, Cutting()), "interrupted"
    )


def users_own(path: Path) -> set[Path]:
    """Files, folders and links of a user's beside a datastore's and among them."""
    (data,) = path.glob("data-*")
    outside = path.with_name("outside")
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("mine")
    made = {
        path / "data-raw" / "sub" / "a.csv",
        path / "data-2024" / "texts-00000.arrow",
    }
    made |= {
        path / ".notes.partial",
        path / ".manifest.json.1.partial",
        path / "embeddings.f32",
    }
    made |= {
        data / "notes.txt",
        data / "sub" / "texts-00009.arrow",
        data / "index-old.faiss",
    }
    for file in made:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    links = {path / f"data-{UUID}": outside / "folder"}
    links |= {
        path / "data-link": outside / "nowhere",
        data / "texts-00007.arrow": outside / "file",
    }
    for link, target in links.items():
        link.symlink_to(target)
    return made | links.keys() | {outside / "folder", outside / "file"}


@pytest.mark.parametrize(
    "write", ["append", "resume", "restart", "overwrite", "nothing to index"]
)
def test_a_users_files_in_a_datastore_stay(source, more, embedder, tmp_path, write):
    path = tmp_path / "store"
    if write in ("append", "overwrite"):
        index_corpus(source, path, embedder)
    else:
        interrupted(source, path, embedder)
    own = users_own(path)
    if write == "overwrite":
        Datastore.build(["new"], embedder, path, progress=False, overwrite=True)
    elif write == "nothing to index":
        (tmp_path / "none.jsonl").write_text("")
        with pytest.raises(SourceError, match="nothing to index"):
            index_corpus(
                Source(tmp_path / "none.jsonl"), path, embedder, mode="restart"
            )
    else:
        index_corpus(more if write == "append" else source, path, embedder, mode=write)
    assert {entry for entry in own if not os.path.lexists(entry)} == set()
    assert all(entry.read_text() == "mine" for entry in own if entry.is_file())


def test_what_replaced_and_killed_writes_left_goes(source, more, embedder, tmp_path):
    path = tmp_path / "store"
    index_corpus(source, path, embedder)
    (old,) = path.glob("data-*")
    Datastore.build(["new"], embedder, path, progress=False, overwrite=True)
    assert not old.exists()
    old.mkdir()
    (old / "texts-00000.arrow").write_text("replaced")
    (path / f".journal.json.{old.name[5:]}.partial").write_text("killed")
    (tmp_path / "d.jsonl").write_text('{"text": "a text of some length"}\n')
    with pytest.raises(ValueError, match="has the columns text, got text, source"):
        index_corpus(Source(tmp_path / "d.jsonl"), path, embedder, mode="append")
    assert len(files(path)) == 3
    assert not old.exists()


@pytest.mark.parametrize("name", [".notes.partial", "notes.txt", "data-raw"])
def test_a_folder_that_holds_anything_else_is_refused(source, embedder, tmp_path, name):
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj" / name).write_text("mine")
    for mode in ("new", "resume", "restart"):
        with pytest.raises(FileExistsError, match="not empty and not a datastore"):
            index_corpus(source, tmp_path / "proj", embedder, mode=mode)
    assert files(tmp_path / "proj") == {name}


def test_a_killed_writes_partial_file_is_in_nobodys_way(source, embedder, tmp_path):
    (tmp_path / "store").mkdir()
    left = f".journal.json.{UUID}.partial"
    (tmp_path / "store" / left).write_text("{")
    assert len(index_corpus(source, tmp_path / "store", embedder)) == COUNT
    assert len(files(tmp_path / "store")) == 3


def test_a_link_in_place_of_texts_is_not_written_through(
    source, more, embedder, tmp_path
):
    path = tmp_path / "store"
    index_corpus(source, path, embedder)
    (data,) = path.glob("data-*")
    (data / "texts-00001.arrow").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=r"texts-00001\.arrow is a symbolic link"):
        index_corpus(more, path, embedder, mode="append")
    assert not (tmp_path / "outside").exists()
    assert len(Datastore.open(path)) == COUNT


@pytest.mark.parametrize("name", ["manifest.json", "journal.json"])
def test_a_link_that_leads_nowhere_is_not_replaced(source, embedder, tmp_path, name):
    path = tmp_path / "store"
    interrupted(source, path, embedder)
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to("nowhere")
    with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
        index_corpus(source, path, embedder, mode="resume")
    assert (path / name).is_symlink()


def test_a_write_into_a_datastore_that_was_replaced_is_not_resumed(
    source, more, embedder, tmp_path
):
    path = tmp_path / "store"
    interrupted(source, path, embedder)
    other = index_corpus(more, tmp_path / "other", embedder).manifest
    (tmp_path / "other" / other.data).rename(path / other.data)
    (tmp_path / "other" / "manifest.json").rename(path / "manifest.json")
    with pytest.raises(
        ValueError, match=f"the datastore is in {other.data} by now: restart"
    ):
        index_corpus(source, path, embedder, mode="resume")
    assert len(Datastore.open(path)) == COUNT
    assert len(index_corpus(source, path, embedder, mode="restart")) == 2 * COUNT


def test_a_journal_of_a_users_is_not_removed(embedder, tmp_path):
    Datastore.build(["a"], embedder, tmp_path / "store", progress=False)
    (tmp_path / "store" / "journal.json").write_text('{"monday": "rain"}')
    with pytest.raises(
        ValueError, match=r"journal\.json: must have the fields .*monday"
    ):
        Datastore.build(
            ["b"], embedder, tmp_path / "store", progress=False, overwrite=True
        )
    assert (tmp_path / "store" / "journal.json").read_text() == '{"monday": "rain"}'
