"""Nothing that others wrote steers the terminal: no escape of theirs is printed as it is."""

import json
import re
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from hullft_ops._terminal import printable, show
from hullft_ops.cli import adapt as commands_adapt
from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore, TestTimeFinetuner, load_embedder

# Clears the screen, writes to the clipboard, hides a link's address, turns the direction.
HOSTILE = (
    "\x1b[2J\x1b]52;c;aGk=\x07\x1b]8;;http://evil\x1b\\text\x9b31m\x7f\u202e\u2066"
)
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert not RAW.search(result.output), repr(result.output)
    return result


@pytest.fixture
def store(embedder_directory: Path, tmp_path: Path) -> Path:
    """Of hostile texts, in a manifest with hostile names."""
    texts = [f"{HOSTILE} the cat sat on the red mat {n}" for n in range(9)]
    path = tmp_path / "store"
    Datastore.build(texts, load_embedder(str(embedder_directory)), path, progress=False)
    return path


def forge(store: Path, name: str, value: object) -> None:
    manifest = store / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {name: value}))


def test_every_control_character_is_escaped_and_all_else_stays() -> None:
    for code in range(0x3000):
        raw = RAW.match(chr(code)) or chr(code) == "\n"
        assert (printable(chr(code)) == chr(code)) == (not raw)
    assert (
        printable("a\tb\n\x1b[0m\ud800 ü 😀\u202e")
        == "a\tb\\x0a\\x1b[0m\\ud800 ü 😀\\u202e"
    )
    assert printable("a\n\x1b", lines=True) == "a\n\\x1b"
    out = StringIO()
    show(Console(file=out, force_terminal=True), f"[bold]{HOSTILE}", "a:cat:b")
    assert out.getvalue() == printable(f"[bold]{HOSTILE}") + "\na:cat:b\n"


def test_info_of_a_forged_manifest(store: Path) -> None:
    source = {
        "settings": {"source": HOSTILE},
        "records": 1,
        "malformed": 1,
        "near_empty": 0,
    }
    source |= {"repeated": 0, "malformed_named": [f"{HOSTILE}\nforged line"]}
    forge(store, "sources", [source])
    forge(store, "embedder", HOSTILE)
    result = invoke("info", store)
    assert result.exit_code == 0
    assert result.stdout.count(r"\x1b]52;c;aGk=\x07") == 3
    assert r"\x0aforged line" in result.stdout
    found = json.loads(invoke("info", store, "--json").stdout)
    assert (found["embedder"], found["sources"]) == (HOSTILE, [source])


def test_errors(store: Path, tmp_path: Path) -> None:
    forge(store, "data", HOSTILE)
    for arguments in (["info", store], ["info", tmp_path / HOSTILE]):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert r"\x1b[2J" in result.stderr
    result = invoke("index", "a.jsonl", HOSTILE, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert "unexpected" in result.stderr


def test_index_of_files_of_hostile_names(
    embedder_directory: Path, tmp_path: Path
) -> None:
    folder = tmp_path / printable(HOSTILE).replace("/", "").replace("\\x1b", "\x1b")
    folder.mkdir()
    (folder / "good\x1b[2J.txt").write_text("the cat sat on the red mat")
    (folder / "bad\x1b[2J.txt").write_bytes(b"\xff")
    own = (
        "index",
        folder,
        "--out",
        tmp_path / "store",
        "--embedder",
        embedder_directory,
    )
    result = invoke(*own)
    assert result.exit_code == 0, result.stderr
    assert r"1 files that are not text (bad\x1b[2J.txt)" in result.stdout
    lines = folder / "bad\x1b[2J.jsonl"
    lines.write_text("oops\n")
    result = invoke(
        "index", lines, "--out", tmp_path / "other", "--embedder", embedder_directory
    )
    assert result.exit_code == 2
    assert r"bad\x1b[2J.jsonl:1: not JSON" in result.stderr


def test_adapt_and_evaluate(
    store: Path, model_directory: Path, embedder_directory: Path, tmp_path: Path
) -> None:
    models = (
        "--model",
        model_directory,
        "--embedder",
        embedder_directory,
        "--store",
        store,
    )
    result = invoke(
        "adapt", *models, "--prompt", "the cat sat on the red mat", "--steps", 2
    )
    assert result.exit_code == 0, result.stderr
    assert r"\x1b[2J\x1b]52" in result.stdout
    prompt = {"text": "the dog ran to the park on the blue tree", "domain": HOSTILE}
    (tmp_path / "p.jsonl").write_text(json.dumps(prompt))
    own = ("--prompts", tmp_path / "p.jsonl", "--output", tmp_path / "r\x1b[2J.jsonl")
    result = invoke("evaluate", *models, *own, "--method", "knn", "--steps", 2)
    assert result.exit_code == 0, result.stderr
    assert r"1 prompts (\x1b[2J\x1b]52" in result.stderr
    assert r"r\x1b[2J.jsonl" in result.stdout


def test_what_a_model_writes_does_not_steer_a_terminal(
    store: Path,
    model_directory: Path,
    embedder_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        TestTimeFinetuner, "continuation", lambda *_, **__: f"one\n{HOSTILE}"
    )
    terminal = partial(Console, force_terminal=True, color_system=None, width=500)
    monkeypatch.setattr(commands_adapt, "Console", terminal)
    own = (
        "--model",
        model_directory,
        "--embedder",
        embedder_directory,
        "--store",
        store,
    )
    prompt = ("--prompt", "the cat sat on the red mat", "--steps", 2, "--generate")
    assert invoke("adapt", *own, *prompt).stdout.endswith(
        f"one\n{printable(HOSTILE)}\n"
    )
