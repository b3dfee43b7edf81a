"""``hullft-ops index``: its options, and what it prints."""

import json
from importlib import import_module

import pytest

from command import hullft_ops, succeeded
from hullft_ops.ttft.embedding import load_embedder
from hullft_ops.ttft.store.datastore import Datastore


@pytest.fixture
def corpus(tmp_path):
    """20 pages with a domain, and a line without text."""
    lines = [
        {"body": f"page {n} is about the number {n} " * 9, "domain": "ab"[n % 2]}
        for n in range(20)
    ]
    file = tmp_path / "pages.jsonl"
    file.write_text("\n".join(map(json.dumps, [*lines, {"domain": "c"}])))
    return file


@pytest.fixture
def run(embedder_directory):
    """Runs the command with the tiny embedder; gives what it printed."""

    def run(*arguments):
        return succeeded("index", "--embedder", embedder_directory, *arguments).stdout

    return run


def test_every_option_of_indexing_is_one_of_the_command(run, corpus, tmp_path):
    options = ["--text-column", "body", "--passage-chars", 60, "--min-chars", 4]
    printed = run(corpus, "--output", tmp_path / "store", *options)
    store = Datastore.open(tmp_path / "store")

    assert 40 < max(map(len, store.texts)) <= 60
    assert "1 skipped (pages.jsonl:21: no text in column body)" in printed


def test_the_embedder_may_compute_in_bfloat16(run, corpus, tmp_path, monkeypatch):
    loaded = []

    def load(name, **options):
        loaded.append(options)
        return load_embedder(name, **options)

    monkeypatch.setattr(import_module("hullft_ops.cli.index"), "load_embedder", load)
    options = ["--text-column", "body", "--dtype", "bfloat16"]
    run(corpus, "--output", tmp_path / "store", *options)

    assert loaded == [{"device": None, "dtype": "bfloat16"}]


def test_without_vectors_no_embedder_is_loaded(run, tmp_path):
    (tmp_path / "a.py").write_text("def area_of(circle):\n    return PI\n" * 40)
    printed = run(
        tmp_path / "a.py",
        "--output",
        tmp_path / "store",
        "--no-vectors",
        "--embedder=x",
    )
    store = Datastore.open(tmp_path / "store")

    assert printed.startswith("2 passages, no vectors\n")
    assert max(map(len, store.texts)) <= 800
    assert len(store.words.search("areaOf", 2)) == 2


def test_a_corpus_is_refused_before_the_embedder_is_loaded():
    result = hullft_ops("index", "nowhere", "--output", "x", "--embedder", "missing")

    assert result.stderr == "hullft-ops index: nowhere: no such file or folder\n"


def test_a_folder_and_its_patterns(run, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a.md", "b.md", "c.py"):
        (folder / name).write_text(f"the text in the file {name}")

    (folder / "\x1b[31mred.png").write_bytes(b"\x89PNG\0")
    printed = run(folder, "--output", tmp_path / "store", "--exclude", "*.py", "b.*")

    assert [*Datastore.open(tmp_path / "store").sources] == ["a.md"]
    # Names of files do not steer the terminal.
    assert "\x1b" not in printed
    assert r"\x1b[31mred.png: not UTF-8 text" in printed


def test_verify_reads_a_whole_datastore(run, corpus, tmp_path):
    run(corpus, "--output", tmp_path / "store", "--text-column", "body")
    printed = succeeded("verify", tmp_path / "store").stdout

    assert printed.endswith("everything is as it was written\n")

    version = tmp_path / "store" / "version-1.sqlite"
    version.write_bytes(bytes(version.stat().st_size))
    result = hullft_ops("verify", tmp_path / "store")

    assert result.code == 2
    assert "version-1.sqlite: is damaged" in result.stderr


def test_the_same_command_brings_a_datastore_up_to_date(run, corpus, tmp_path):
    arguments = [corpus, "--output", tmp_path / "store", "--text-column", "body"]
    run(*arguments)
    corpus.write_text(
        corpus.read_text() + '\n{"body": "a page that was written later"}'
    )

    assert "21 records read" in run(*arguments)
    assert "a page that was written later" in Datastore.open(tmp_path / "store").texts

    result = hullft_ops("index", *arguments, "--no-vectors")

    assert result.code == 2
    assert "is a datastore with embedder" in result.stderr
