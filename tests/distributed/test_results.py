"""Indexing and evaluating with Ray's workers, one of them killed: the results of one process."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from guides import DISTRIBUTED, run_blocks
from hullft_ops.distributed.embedding import ray_embedding
from hullft_ops.distributed.evaluation import load_measurement, ray_rows
from hullft_ops.distributed.workers import Workers
from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.evaluation.results import Row
from hullft_ops.evaluation.run import load_evaluation, measure_tasks, missing
from hullft_ops.ttft import Datastore, index_corpus, load_embedder
from hullft_ops.ttft.embedding import DEFAULT_EMBEDDER
from hullft_ops.ttft.errors import InputError
from processes import below, content, wait_for

pytestmark = pytest.mark.long


def text(number: int) -> str:
    """A function whose tokens all texts share but for the number."""
    return f"def area_{number}(side):\n    side = side * {number}\n    return side\n"


def write_lines(file: Path, numbers: range) -> Path:
    """A JSONL file of a text for each number."""
    lines = [json.dumps({"text": text(number)}) + "\n" for number in numbers]
    file.write_text("".join(lines))
    return file


def working() -> int | None:
    """A process of a worker at work: Ray names it so."""
    for pid in below(os.getpid()):
        if content(Path(f"/proc/{pid}/cmdline")).startswith(b"ray::Worker.work"):
            return pid
    return None


def test_an_index_has_the_bits_of_one_process_though_a_worker_is_killed(
    one_thread, tmp_path
):
    """200 texts make seven batches."""
    corpus = write_lines(tmp_path / "corpus.jsonl", range(200))
    embedder = load_embedder()
    alone = index_corpus(corpus, tmp_path / "alone", embedder)
    victims = []

    def embed(batches: Iterator[list[str]]) -> Iterator[Any]:
        return ray_embedding(DEFAULT_EMBEDDER, Workers("ray", 2))(killing(batches))

    def killing(batches: Iterator[list[str]]) -> Iterator[list[str]]:
        for batch in batches:
            yield batch
            if not victims:
                # The first batch has a worker now.
                victims.append(wait_for(working))
                os.kill(victims[0], signal.SIGKILL)

    store = index_corpus(corpus, tmp_path / "ray", embedder, embed=embed)
    assert len(victims) == 1
    assert torch.equal(store.embeddings, alone.embeddings)
    assert store.identity == alone.identity


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Two methods on four prompts, with the shipped model."""
    texts = [text(number) for number in range(40)]
    Datastore.build(texts, load_embedder(), tmp_path / "store")
    return Experiment(
        store=tmp_path / "store",
        prompts=write_lines(tmp_path / "prompts.jsonl", range(100, 104)),
        settings=[{"method": ["knn", "hullft"], "n_select": 4, "pool_size": 10}],
    )


def untimed(rows: list[Row]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows by prompt and configuration."""
    return {row.key: row.model_dump(exclude={"seconds", "seconds_row"}) for row in rows}


def test_an_evaluation_has_the_rows_of_one_process_though_a_worker_is_killed(
    one_thread, experiment
):
    evaluation = load_evaluation(experiment)
    tasks = missing(evaluation, {})
    alone = list(measure_tasks(evaluation, tasks))

    assert len(alone) == 8

    rows = []
    workers = Workers("ray", 1)
    for row in ray_rows(tasks, workers, run=evaluation.run, experiment=experiment):
        if not rows:
            os.kill(wait_for(working), signal.SIGKILL)

        rows.append(row)

    assert untimed(rows) == untimed(alone)

    # Not so with another model of the same name.
    with pytest.raises(InputError, match="a worker has another model"):
        load_measurement("other", experiment)


def test_without_tasks_no_worker_starts(experiment):
    workers = Workers("ray", workers=100)
    assert list(ray_rows([], workers, run="any", experiment=experiment)) == []


def test_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(DISTRIBUTED)
