"""``hullft-ops index`` and ``hullft-ops info DIR``."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore
from hullft_ops.ttft.store.embedding import SentenceTransformerEmbedder


@pytest.fixture
def file(corpus_file: Path, tmp_path: Path) -> Path:
    """The corpus without its malformed lines, and with a domain in each record."""
    records = []
    for line in corpus_file.read_text().splitlines():
        try:
            records.append({**json.loads(line), "domain": "ab"[len(records) % 2]})
        except json.JSONDecodeError:
            continue
    good = [r for r in records if isinstance(r.get("text"), str) and r["text"].strip()]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in good))
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_index_then_info(file: Path, embedder_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    own = (file, "--out", out, "--embedder", embedder_directory, "--metadata", "domain")
    result = invoke("index", *own)
    assert result.exit_code == 0, result.stderr
    assert "embedding" in result.stderr
    assert "search     flat, exact" in result.stdout
    assert "60 texts of 60 records; left out: 0 malformed" in result.stdout
    assert len(Datastore.open(out).filter(domain="a")) == 30
    assert invoke("info", out).stdout == result.stdout
    assert json.loads(invoke("info", out, "--json").stdout)["count"] == 60
    again = invoke("index", *own)
    assert (again.exit_code, again.stderr.splitlines()[-1][:18]) == (
        2,
        "hullft-ops index: ",
    )
    assert invoke("index", *own, "--resume").exit_code == 0


def test_chunks_follow_the_embedders_tokenizer(
    file: Path, embedder_directory: Path, tmp_path: Path
) -> None:
    own = ("--embedder", embedder_directory, "--chunk-tokens", 8, "--overlap", 2)
    result = invoke("index", file, "--out", tmp_path / "store", *own)
    assert result.exit_code == 0, result.stderr
    texts = list(Datastore.open(tmp_path / "store").texts)
    assert max(len(text.split()) for text in texts) == 8
    assert len(texts) > 120


def test_chunks_follow_another_tokenizer(
    file: Path, embedder_directory: Path, model_directory: Path, tmp_path: Path
) -> None:
    own = (
        "--embedder",
        embedder_directory,
        "--tokenizer",
        model_directory,
        "--chunk-tokens",
        16,
    )
    result = invoke("index", file, "--out", tmp_path / "store", *own)
    assert result.exit_code == 0, result.stderr
    # That of the model has a token for each byte.
    assert max(map(len, Datastore.open(tmp_path / "store").texts)) == 16


def test_inverted_lists_are_said(
    file: Path, embedder_directory: Path, tmp_path: Path
) -> None:
    own = (
        "--out",
        tmp_path / "store",
        "--embedder",
        embedder_directory,
        "--flat-up-to",
        20,
    )
    result = invoke("index", file, *own)
    assert result.exit_code == 0, result.stderr
    assert "ivf, 1 lists, 1 read, recall@59" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--append", "--resume"], "choose one of --append and --resume"),
        (["--overlap", "3", "--chunk-tokens", "0"], "overlap 3 needs chunk_tokens"),
        (["--tokenizer", "x"], "--tokenizer needs --chunk-tokens"),
        (["--exclude", "*.md"], "include and exclude need a folder"),
        (["--max-bad-share", "2"], "--max-bad-share must be from 0 to 1, got 2"),
        (["--metadata", "colour"], "no record has the metadata colour"),
        (["--append"], "no datastore at"),
    ],
)
def test_what_cannot_be_met_ends_with_one_line(
    arguments: list[str],
    message: str,
    file: Path,
    embedder_directory: Path,
    tmp_path: Path,
) -> None:
    own = ("--out", tmp_path / "store", "--embedder", embedder_directory)
    result = invoke("index", file, *own, *arguments)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hullft-ops index: ")
    assert message in last


def test_malformed_lines_end_it_past_the_share(
    corpus_file: Path, embedder_directory: Path, tmp_path: Path
) -> None:
    own = (corpus_file, "--out", tmp_path / "store", "--embedder", embedder_directory)
    result = invoke("index", *own)
    assert result.exit_code == 2
    assert "3 of 64 records are malformed" in result.stderr
    assert "texts.jsonl:11: not JSON" in result.stderr
    result = invoke("index", *own, "--max-bad-share", 0.05)
    assert result.exit_code == 0, result.stderr
    assert "malformed texts.jsonl:11: not JSON" in result.stdout


def test_info_of_what_is_no_datastore(tmp_path: Path) -> None:
    result = invoke("info", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("hullft-ops info: Datastore.open: ")


def test_a_folder_of_mixed_files_is_cut_to_what_the_embedder_reads(
    embedder_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentenceTransformerEmbedder, "max_tokens", 8)
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    words = ["cat", "dog", "mat", "ran", "the"] * 8
    (folder / "a.md").write_text(" ".join(words))
    (folder / "deep" / "b").write_text(" ".join(reversed(words)))
    (folder / "deep" / "log").write_text("left out, as the pattern says")
    for n in range(7):
        (folder / f"{n}.png").write_bytes(b"\x89PNG\0")
    own = (folder, "--embedder", embedder_directory, "--exclude", "log")
    result = invoke("index", *own, "--out", tmp_path / "store")
    assert result.exit_code == 0, result.stderr
    assert (
        f"texts are cut to 8 tokens: {embedder_directory} reads no more"
        in result.stderr
    )
    assert "10 texts of 2 records; left out: 0 malformed" in result.stdout
    named = ", ".join(f"{n}.png" for n in range(5))
    assert f"7 files that are not text ({named}, ...)" in result.stdout
    assert invoke("info", tmp_path / "store").stdout == result.stdout
    whole = invoke("index", *own, "--out", tmp_path / "whole", "--chunk-tokens", 0)
    assert "2 texts of 2 records" in whole.stdout
    assert "texts are cut" not in whole.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"text": "the cat sat on the mat"}\n' * 2, "1 texts of 2 records"),
        ("the cat sat on the mat\n", "1 texts of 1 records"),
    ],
)
def test_stdin(given: str, said: str, embedder_directory: Path, tmp_path: Path) -> None:
    own = [
        "index",
        "-",
        "--out",
        str(tmp_path / "store"),
        "--embedder",
        str(embedder_directory),
    ]
    result = CliRunner().invoke(app, own, input=given)
    assert result.exit_code == 0, result.stderr
    assert f"stdin: {said}" in result.stdout
