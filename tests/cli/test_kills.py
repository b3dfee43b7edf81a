"""``index``, ``evaluate`` and ``tune`` under kill -9 at random moments; ``--kills 20`` kills more.

What a command reported as done is there after the kill, and the next run ends as one that nobody
killed would have. A command runs in a forked process, which has everything imported, so that a
random moment is one of its work.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from forked import forked, status_of
from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore, load_embedder
from hullft_ops.ttft.evaluation.results import ResultsFile
from hullft_ops.ttft.store import writer as store_writer
from hullft_ops.ttft.store.embedding import SentenceTransformerEmbedder
from hullft_ops.ttft.store.format import Journal

TEXTS = 1500


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """OpenMP's threads do not come along into a forked process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store_writer, "_SECONDS_PER_COMMIT", -1.0)
    yield
    torch.set_num_threads(threads)


def run(arguments: list[object]) -> None:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output


def report_after(owner: type, name: str, what: Callable[..., str], pipe: int) -> None:
    """Write a line to ``pipe`` whenever that method has returned."""
    method = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        found = method(*arguments)
        os.write(pipe, (what(*arguments) + "\n").encode())
        return found

    setattr(owner, name, call)


def killed_after(seconds: float, arguments: list[object]) -> tuple[bool, list[str]]:
    """Whether the command was still running then, and what it had reported as done."""
    reader, writer = os.pipe()

    def run_reporting() -> None:
        report_after(Journal, "write", lambda j, _: str(j.embedded), writer)
        report_after(
            ResultsFile,
            "append",
            lambda _, row: json.dumps([row.prompt, row.config]),
            writer,
        )
        run(arguments)

    child = forked(run_reporting, seconds=100)
    os.close(writer)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = status_of(child)
    assert status in (0, -signal.SIGKILL)
    with os.fdopen(reader) as lines:
        return status != 0, lines.read().splitlines()


def kill_often(
    count: int,
    arguments: Callable[[Path], list[object]],
    check: Callable[[Path, list[str]], None],
    directory: Path,
) -> None:
    """Kill the command ``count`` times, each in a directory of its own, at random moments."""
    start = time.monotonic()
    run(arguments(directory / "timed"))
    duration = time.monotonic() - start
    moments = random.Random(0)
    kills = tries = 0
    while kills < count:
        tries += 1
        assert tries <= 5 * count, "the command ends before it is killed"
        at = directory / f"try{tries}"
        moment = moments.uniform(0, duration)
        killed, reported = killed_after(moment, arguments(at))
        kills += killed
        if not killed:  # a machine that is less busy now than when it was timed
            duration = moment
        check(at, reported)


@pytest.fixture
def large_corpus(tmp_path: Path, corpus_file: Path) -> Path:
    words = random.Random(0)
    lines = corpus_file.read_text(encoding="utf-8").split()
    file = tmp_path / "large.jsonl"
    records = (
        {"text": " ".join(words.choices(lines, k=30)), "n": n} for n in range(TEXTS)
    )
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_index(
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    large_corpus: Path,
    embedder_directory: Path,
) -> None:
    embedded: list[int] = []
    encode = SentenceTransformerEmbedder.encode

    def counted(self: Any, texts: Any, **options: Any) -> Any:
        embedded.append(len(texts))
        return encode(self, texts, **options)

    def arguments(path: Path) -> list[object]:
        options = [
            "--embedder",
            embedder_directory,
            "--metadata",
            "n",
            "--flat-up-to",
            1000,
        ]
        return ["index", large_corpus, "--out", path, *options, "--resume"]

    def check(path: Path, reported: list[str]) -> None:
        done = max(map(int, reported), default=0)
        embedded.clear()
        with monkeypatch.context() as patch:
            patch.setattr(SentenceTransformerEmbedder, "encode", counted)
            run(arguments(path))
        # Nothing that was reported is done again.
        assert sum(embedded) <= TEXTS - done
        store = Datastore.open(path)
        assert list(store.rows) == list(whole.rows)
        assert torch.equal(store.embeddings, whole.embeddings)
        assert {p.suffix for p in path.rglob("*") if p.is_file()} == {
            ".json",
            ".arrow",
            ".f32",
        } | {".faiss"}
        assert len(list(path.rglob("*"))) == 5

    run(arguments(tmp_path / "whole"))
    whole = Datastore.open(tmp_path / "whole")
    assert whole.manifest.index.kind == "ivf"
    kill_often(pytestconfig.getoption("--kills"), arguments, check, tmp_path)


@pytest.fixture
def inputs(
    model_directory: Path, embedder_directory: Path, corpus_file: Path, tmp_path: Path
) -> list[object]:
    texts = [
        json.loads(line)["text"] for line in corpus_file.read_text().splitlines()[14:]
    ]
    embedder = load_embedder(str(embedder_directory))
    Datastore.build(texts[6:], embedder, tmp_path / "store", progress=False)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:6]))
    given = ["--model", model_directory, "--embedder", embedder_directory]
    return [*given, "--store", tmp_path / "store", "--prompts", prompts]


def lines_of(file: Path) -> list[bytes]:
    """Those that are whole."""
    content = file.read_bytes() if file.exists() else b""
    return content.split(b"\n")[:-1]


def rows_of(file: Path) -> dict[str, dict[str, Any]]:
    """Untimed, by prompt and configuration; each comes once."""
    rows = list(map(json.loads, lines_of(file)))
    keyed = {
        json.dumps([row["prompt"], row["config"]]): {
            k: v for k, v in row.items() if not k.startswith("seconds")
        }
        for row in rows
    }
    assert len(keyed) == len(rows)
    return keyed


def test_evaluate(
    pytestconfig: pytest.Config, inputs: list[object], tmp_path: Path
) -> None:
    def arguments(path: Path) -> list[object]:
        grid = ["--method", "knn", "--method", "hullft", "--steps", 3, "--steps", 5]
        return [
            "evaluate",
            *inputs,
            *grid,
            "--lr",
            0.01,
            "--output",
            path / "rows.jsonl",
        ]

    def check(path: Path, reported: list[str]) -> None:
        kept = lines_of(path / "rows.jsonl")
        assert set(reported) <= rows_of(path / "rows.jsonl").keys()
        run(arguments(path))
        assert lines_of(path / "rows.jsonl")[: len(kept)] == kept
        assert rows_of(path / "rows.jsonl") == whole

    run(arguments(tmp_path / "whole"))
    whole = rows_of(tmp_path / "whole" / "rows.jsonl")
    assert len(whole) == 6 * 4
    kill_often(pytestconfig.getoption("--kills"), arguments, check, tmp_path)


def test_tune(
    pytestconfig: pytest.Config, inputs: list[object], tmp_path: Path
) -> None:
    def arguments(path: Path) -> list[object]:
        path.mkdir(exist_ok=True)
        grid = ["--method", "hullft", "--refresh", 1, "--steps", 2, "--steps", 6]
        grid += [
            "--lr",
            1e-4,
            "--lr",
            1e-2,
            "--minutes",
            5,
            "--results",
            path / "rows.jsonl",
        ]
        return ["tune", *inputs, *grid, "--output", path / "tuned.json"]

    def settings(path: Path) -> Any:
        return json.loads((path / "tuned.json").read_text())["settings"]

    def check(path: Path, reported: list[str]) -> None:
        kept = lines_of(path / "rows.jsonl")
        assert set(reported) <= rows_of(path / "rows.jsonl").keys()
        if (path / "tuned.json").exists():  # whole, or not there
            assert settings(path) == settings(tmp_path / "whole")
        run(arguments(path))
        assert lines_of(path / "rows.jsonl")[: len(kept)] == kept
        assert rows_of(path / "rows.jsonl") == whole
        assert settings(path) == settings(tmp_path / "whole")

    run(arguments(tmp_path / "whole"))
    whole = rows_of(tmp_path / "whole" / "rows.jsonl")
    kill_often(pytestconfig.getoption("--kills"), arguments, check, tmp_path)
