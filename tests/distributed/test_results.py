"""The guide's commands on Ray's workers, one of which is killed: the results of one process."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from guides import DISTRIBUTED, run, run_blocks
from hullft_ops.distributed.evaluation import load_measurement, ray_rows
from hullft_ops.distributed.workers import Workers
from hullft_ops.evaluation.experiment import Experiment
from hullft_ops.evaluation.results import read_rows
from hullft_ops.ttft import Datastore
from hullft_ops.ttft.validation import InputError
from processes import below, content, wait_for

ON_WORKERS = " --engine ray --workers 2"


def working() -> int | None:
    """A process of a worker at work: Ray names it so."""
    for pid in below(os.getpid()):
        if content(Path(f"/proc/{pid}/cmdline")).startswith(b"ray::Worker.work"):
            return pid

    return None


def kill_a_worker() -> None:
    os.kill(wait_for(working), signal.SIGKILL)


def on_workers(line: str) -> None:
    """As it is written. The first worker that has work is killed."""
    assert line.endswith(ON_WORKERS)

    with ThreadPoolExecutor() as threads:
        kill = threads.submit(kill_a_worker)
        run(line)

    kill.result()


def in_one_process(line: str) -> None:
    run(line.removesuffix(ON_WORKERS))


def results(
    folder: Path, run: Callable[[str], None]
) -> tuple[Datastore, dict[tuple[str, str], dict[str, Any]]]:
    """What the guide makes there: its datastore, and rows by prompt and configuration."""
    folder.mkdir()
    with chdir(folder):
        run_blocks(DISTRIBUTED, run)

    rows = read_rows(folder / "ray.jsonl")
    return (
        Datastore.open(folder / "ray_store"),
        {row.key: row.model_dump(exclude={"seconds"}) for row in rows},
    )


def test_the_guide_has_the_results_of_one_process_though_workers_are_killed(tmp_path):
    """Seven batches to embed, two methods on four prompts."""
    alone, rows_alone = results(tmp_path / "alone", in_one_process)
    store, rows = results(tmp_path / "ray", on_workers)

    assert torch.equal(store.embeddings, alone.embeddings)
    assert store.identity == alone.identity
    assert len(rows) == 8
    assert rows == rows_alone

    # Not so with another model of the same name.
    folder = tmp_path / "ray"
    experiment = Experiment(
        store=folder / "ray_store", prompts=folder / "prompts.jsonl"
    )

    with pytest.raises(InputError, match="a worker has another model"):
        load_measurement("other", experiment)


def test_without_tasks_no_worker_starts():
    workers = Workers(engine="ray", workers=100)
    rows = ray_rows([], workers, run="any", experiment=Experiment())

    assert list(rows) == []
