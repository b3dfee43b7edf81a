"""Ctrl-C in a long command: a line says how to go on, and what it says works."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hullft_ops.cli.app import app
from hullft_ops.ttft.evaluation.runner import Evaluator
from hullft_ops.ttft.store.embedding import SentenceTransformerEmbedder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def interrupt(patch: pytest.MonkeyPatch, owner: type, name: str, call: int = 0) -> None:
    """Raise what Ctrl-C raises at that call of a method."""
    method, calls = getattr(owner, name), []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > call:
            raise KeyboardInterrupt
        return method(*arguments)

    patch.setattr(owner, name, interrupted)


def last_line(result: Result) -> str:
    assert result.exit_code == 130, result.output
    assert "Traceback" not in result.output
    return str(result.stderr.splitlines()[-1])


def test_index_goes_on_with_resume(
    corpus_file: Path,
    embedder_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = (
        "index",
        corpus_file,
        "--out",
        tmp_path / "store",
        "--embedder",
        embedder_directory,
    )
    own += ("--max-bad-share", 0.1)
    with monkeypatch.context() as patch:
        interrupt(patch, SentenceTransformerEmbedder, "encode")
        line = last_line(invoke(*own))
    advice = "run the same command with --resume to continue"
    assert line.startswith(f"hullft-ops index: interrupted: {advice}")
    result = invoke(*own, "--resume")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("evaluate", "run the same command to continue; --output keeps its rows"),
        ("tune", "run the same command to continue; --results keeps its rows"),
        (
            "demo",
            "run the same command again; it reuses its datastore if that was finished",
        ),
    ],
)
def test_what_measures_goes_on_with_its_rows(
    command: str,
    said: str,
    model_directory: Path,
    embedder_directory: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupt(monkeypatch, Evaluator, "_score_before", 2)
    own = (command, "--model", model_directory, "--embedder", embedder_directory)
    own += ("--corpus", corpus_file, "--n-select", 2)
    result = invoke(*own, *(("--prompts", 2) if command == "demo" else ("--limit", 2)))
    assert last_line(result) == f"hullft-ops {command}: interrupted: {said}"
    kept = [path for path in tmp_path.glob("*.jsonl") if path.read_text()]
    assert len(kept) == (command != "demo")
