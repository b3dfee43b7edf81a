"""Every command refuses a bad output before the work, and leaves what is there."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from command import hullft_ops
from hullft_ops.ttft import embedding
from hullft_ops.ttft.models import loading


def user_file(path: Path) -> None:
    path.write_text("years of work")


def user_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


BAD = {
    user_file: "",
    user_folder: "",
    link_to_nothing: "is neither a regular file nor a folder",
    os.mkfifo: "is neither a regular file nor a folder",
}
# The option that names the output, and what else the command needs.
COMMANDS = {
    "answer --output": "answer {corpus} --prompt-column text --store {store}",
    "demo --output": "demo --corpus {corpus}",
    "evaluate --output": "evaluate --corpus {corpus}",
    "index --output": "index {corpus}",
    "train --output": "train {store}",
}


@pytest.fixture
def command(
    store: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """The words of a command that fails the test if it begins to work."""

    def begun(*_: object, **__: object) -> None:
        pytest.fail("the work has begun")

    monkeypatch.setattr(loading, "_load", begun)
    monkeypatch.setattr(embedding.SentenceTransformerEmbedder, "__init__", begun)

    def words(name: str) -> list[str]:
        line = COMMANDS[name].format(store=store, corpus=corpus_file)
        return [*line.split(), name.split()[1]]

    return words


def contents(folder: Path) -> dict[Path, str | None]:
    return {
        path: path.read_text() if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.mark.parametrize("make", BAD)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_not_ours_stays(
    name: str,
    make: Callable[[Path], None],
    command: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    make(tmp_path / "out")
    before = contents(tmp_path)
    below = [] if make is user_folder else ["out/new"]
    for output in ("out", *below):
        result = hullft_ops(*command(name), output)

        assert result.code == 2

        message = BAD[make] if output == "out" else "cannot write to "

        assert message in result.last
        assert "out" in result.last

    assert contents(tmp_path) == before


def test_an_input_stays(
    command: Callable[[str], list[str]], store: Path, corpus_file: Path, tmp_path: Path
) -> None:
    for name, source in {
        "answer --output": corpus_file,
        "evaluate --output": corpus_file,
        "index --output": corpus_file.parent,
        "train --output": store,
    }.items():
        result = hullft_ops(*command(name), source)

        assert result.code == 2
        assert "the input" in result.last

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    result = hullft_ops(*command("answer --output"), adapter, "--adapter", adapter)

    assert "is the input" in result.last
