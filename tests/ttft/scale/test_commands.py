"""``index``, ``evaluate`` and ``experts build`` with Ray's workers, one of them killed: the same
files as of one process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from guides import SCALE, run_blocks
from hullft_ops import cli
from hullft_ops.cli.app import app
from hullft_ops.ttft import Cutting, Datastore, Source, index_corpus, load_embedder
from hullft_ops.ttft.evaluation.results import Row, read_rows
from hullft_ops.ttft.scale import cluster as pool
from hullft_ops.ttft.scale.cluster import Workers
from hullft_ops.ttft.scale.embedding import ray_embedding
from hullft_ops.ttft.store import writer
from hullft_ops.ttft.store.format import Journal
from on_ray import EMBEDDER, TEXTS, text, threads
from processes import below, content, is_running, wait_for

ELSEWHERE = "the operators of another process are the CPU's"
PROMPTS = 6
pytestmark = pytest.mark.long

ON_RAY = ["--engine", "ray", "--workers"]
GRID = ["--method", "knn", "--method", "hullft", "--steps", "8", "--refresh", "1"]
AT_WORK = b"ray::Worker.work"
# A command that waits for its end once three rows are in the file.
HALTED = """
import sys
from hullft_ops import cli
from hullft_ops.ttft.evaluation.results import ResultsFile

append = ResultsFile.append

def halt(results, row):
    append(results, row)
    if len(results.rows) == 3:
        print("halted", flush=True)
        sys.stdin.read()

ResultsFile.append = halt
cli.main()
"""

# A command that says which Ray it leaves.
JOINED = """
import ray
from hullft_ops import cli

shutdown = ray.shutdown

def leave():
    print("left", ray.get_runtime_context().gcs_address, flush=True)
    shutdown()

ray.shutdown = leave
cli.main()
"""


@pytest.fixture(scope="module")
def inputs(
    store: Path,
    tokenizers: dict[str, PreTrainedTokenizerFast],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[str]:
    """Options that name a model, the datastore, prompts that it lacks, and a grid of two."""
    torch.manual_seed(0)
    model = tmp_path_factory.mktemp("model")
    config = GPT2Config(vocab_size=320, n_positions=128, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(model)
    tokenizers["byte_level"].save_pretrained(model)
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    held_out = (text(n) for n in range(TEXTS, TEXTS + PROMPTS))
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in held_out))
    named = ["--model", str(model), "--store", str(store), "--prompts", str(file)]
    return ["evaluate", *named, *GRID]


@pytest.fixture(scope="module")
def rows(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Of this process, with one thread."""
    output = tmp_path_factory.mktemp("alone") / "results.jsonl"
    with threads(1):
        invoke(*inputs, "--output", output)
    found = read_rows(output)
    assert len(found) == 2 * PROMPTS
    return found


def invoke(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def untimed(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        row.key: {k: v for k, v in vars(row).items() if not k.startswith("seconds")}
        for row in rows
    }


def busy_worker() -> int | None:
    """A worker of this process's Ray that runs a method: Ray names its processes so."""
    for pid in below(os.getpid()):
        if content(Path(f"/proc/{pid}/cmdline")).startswith(AT_WORK):
            return pid
    return None


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """With the first results that come while another worker is at its work, that one is killed."""
    victims, fetch = list[int](), pool.first_result

    def first_result(promises: list[Any]) -> tuple[Any, Any]:
        result = fetch(promises)
        victim = None if victims else busy_worker()
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
            victims.append(victim)
        return result

    monkeypatch.setattr(pool, "first_result", first_result)
    yield victims
    assert victims, "the run was over before a worker was killed"


def assert_same_datastore(path: Path, other: Path) -> None:
    found, wanted = Datastore.open(path), Datastore.open(other)
    assert torch.equal(found.embeddings, wanted.embeddings)
    assert list(found.texts) == list(wanted.texts)


@pytest.fixture(scope="package")
def daemons() -> Iterator[set[int]]:
    """Of a Ray whose main process is gone. None may stay, though some try to reach it for a minute.

    That minute is for the other tests with Ray.
    """
    started: set[int] = set()
    yield started
    wait_for(lambda: not any(map(is_running, started)))


@pytest.mark.cpu_only(ELSEWHERE)
@pytest.mark.usefixtures("killed")
def test_an_evaluation_goes_on_though_the_command_and_then_a_worker_is_killed(
    inputs: list[str], rows: list[Row], tmp_path: Path, daemons: set[int]
) -> None:
    """The first command has a Ray of its own and one worker, the second one this Ray and two."""
    output = tmp_path / "results.jsonl"
    command = [*inputs, "--output", str(output), *ON_RAY]
    with subprocess.Popen(
        [sys.executable, "-c", HALTED, *command, "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert b"halted\n" in process.stdout
        daemons |= below(process.pid)
        process.kill()
    kept = output.read_bytes().splitlines()
    assert len(kept) == 3
    invoke(*command, "2")
    assert output.read_bytes().splitlines()[: len(kept)] == kept
    assert untimed(read_rows(output)) == untimed(rows)


@pytest.mark.cpu_only(ELSEWHERE)
def test_a_worker_of_two_threads_gives_the_rows_of_a_process_of_two(
    inputs: list[str], tmp_path: Path
) -> None:
    few = [*inputs, "--limit", "1"]
    with threads(2):
        invoke(*few, "--output", tmp_path / "alone.jsonl")
    with threads(1):
        command = [*few, "--threads-per-worker", "2", *ON_RAY, "1"]
        invoke(*command, "--output", tmp_path / "ray.jsonl")
    found = read_rows(tmp_path / "ray.jsonl")
    assert [row.threads for row in found] == [2] * 2
    assert untimed(found) == untimed(read_rows(tmp_path / "alone.jsonl"))


@pytest.mark.usefixtures("killed")
def test_an_index_goes_on_from_the_journal_by_a_command_that_joins_the_cluster(
    corpus: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed, then what takes the vectors; another number of workers does the rest."""
    monkeypatch.setattr(writer, "_SECONDS_PER_COMMIT", 0.0)
    path, embedder = tmp_path / "store", load_embedder(EMBEDDER)
    encode = ray_embedding(embedder, EMBEDDER, Workers(2))

    def interrupted(batches: Iterable[list[str]]) -> Generator[np.ndarray]:
        vectors = encode(batches)
        for _ in range(3):
            yield next(vectors)
        raise KeyboardInterrupt

    cutting = Cutting(embedder.tokenizer, embedder.max_tokens)
    with pytest.raises(KeyboardInterrupt):
        index_corpus(
            Source(corpus), path, embedder, cutting=cutting, encode=interrupted
        )
    journal = Journal.read(path)
    assert journal is not None
    assert journal.embedded == 3 * 128
    address = ray.get_runtime_context().gcs_address
    command = ["index", str(corpus), "--out", str(path), "--resume", *ON_RAY, "1"]
    done = subprocess.run(
        [sys.executable, "-c", JOINED, *command],
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"left {address}" in done.stdout.splitlines()
    assert_same_datastore(path, store)
    # It ends with whoever started it.
    assert all(node["Alive"] for node in ray.nodes())


@pytest.mark.cpu_only(ELSEWHERE)
def test_experts_have_the_bits_of_those_of_one_process(
    inputs: list[str], store: Path, tmp_path: Path
) -> None:
    own = [
        "experts",
        "build",
        str(store),
        *inputs[1:3],
        "--clusters",
        "3",
        "--passages",
        "2",
    ]
    with threads(1):
        invoke(*own, "--out", tmp_path / "alone")
        invoke(*own, "--out", tmp_path / "ray", *ON_RAY, "2")
    files = [
        path.relative_to(tmp_path / "alone")
        for path in (tmp_path / "alone").rglob("*.*")
    ]
    assert len(files) == 2 + 2 * 3
    for file in files:
        assert (tmp_path / "ray" / file).read_bytes() == (
            tmp_path / "alone" / file
        ).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "Workers: count must be in 1..2147483647, got 0"),
        (["--gpus-per-worker", "-1"], "Workers: gpus must be 0 or more, got -1.0"),
    ],
)
def test_numbers_that_none_can_be_asked_by_end_with_one_line(
    options: list[str], message: str, corpus: Path, tmp_path: Path
) -> None:
    command = [
        "index",
        str(corpus),
        "--out",
        str(tmp_path / "store"),
        "--engine",
        "ray",
    ]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "option", ["--workers", "--threads-per-worker", "--gpus-per-worker"]
)
def test_options_of_ray_without_it_are_refused(option: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["evaluate", option, "2", "--output", str(tmp_path / "r")]
    )
    assert result.exit_code == 2
    assert f"{option} needs --engine ray" in result.stderr


def test_without_ray_the_extra_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, pool.__name__)
    command = [
        "hullft-ops",
        "index",
        str(corpus),
        "--out",
        str(tmp_path / "s"),
        "--engine",
        "ray",
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=r"needs ray: pip install '\.\[ray\]' in "):
        cli.main()


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(SCALE)
