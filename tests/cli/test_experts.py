"""``hullft-ops experts build``."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore, load_embedder
from hullft_ops.ttft.experts import Experts


@pytest.fixture
def store(corpus_file: Path, embedder_directory: Path, tmp_path: Path) -> Path:
    texts = [
        json.loads(line)["text"] for line in corpus_file.read_text().splitlines()[14:]
    ]
    embedder = load_embedder(str(embedder_directory))
    Datastore.build(texts, embedder, tmp_path / "store", progress=False)
    return tmp_path / "store"


def build(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["experts", "build", *map(str, arguments)])


def test_build_and_go_on(model_directory: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "experts"
    own = (
        store,
        "--out",
        out,
        "--model",
        model_directory,
        "--clusters",
        2,
        "--passages",
        2,
    )
    result = build(*own, "--rank", 2)
    assert result.exit_code == 0, result.stderr
    assert "training experts" in result.stderr
    assert f"2 experts in {out}, " in result.stdout
    experts = Experts.open(out)
    assert (len(experts), experts.manifest.rank, experts.manifest.passages) == (2, 2, 2)
    assert experts.manifest.model == str(model_directory)
    assert build(*own, "--rank", 2).stdout == result.stdout
    other = build(*own, "--full")
    assert other.exit_code == 2
    assert other.stderr.startswith("hullft-ops experts build: build_experts: ")
    assert (
        "was built with kind 'lora', rank 2, asked for kind 'full', rank 0"
        in other.stderr
    )


def test_what_cannot_be_built_ends_with_one_line(store: Path, tmp_path: Path) -> None:
    for arguments, said in [
        ((tmp_path / "nowhere",), "store "),
        (
            (store, "--clusters", 61),
            "build_experts: clusters is 61, the store has 50 texts",
        ),
        ((store, "--workers", 2), "--workers needs --engine ray"),
    ]:
        result = build(*arguments, "--out", tmp_path / "experts")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"hullft-ops experts build: {said}"), (
            result.stderr
        )
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "experts").exists()
