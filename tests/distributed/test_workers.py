"""Workers that die or find no room, and the options that name them."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from hullft_ops.distributed import workers as module
from hullft_ops.distributed.workers import Workers, do_item, worker_pool
from hullft_ops.ttft.validation import InputError


def doubling(graves: Path) -> Callable[[int], int]:
    """Loads a function that dies of numbers below zero."""

    def double(number: int) -> int:
        if number < 0:
            deaths = len(list(graves.iterdir()))
            (graves / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)

        return 2 * number

    return double


def doubled(graves: Path, numbers: list[int]) -> Iterator[int]:
    """What one worker makes of the numbers."""
    with worker_pool(Workers(engine="ray", workers=1), doubling, graves=graves) as pool:
        yield from pool.map(do_item, numbers)


def test_work_that_ends_every_worker_is_given_up(tmp_path, monkeypatch):
    # This module cannot be imported where the workers are.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(module, "RETRIES", 0)

    results = doubled(tmp_path, [3, -1, 4])

    assert next(results) == 6

    with pytest.raises(InputError, match="the same work has ended its worker 1 times"):
        next(results)

    assert len(list(tmp_path.iterdir())) == 1


class Ended:
    """A worker that is killed while it starts, as by Ray's memory monitor."""

    def __init__(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)

    def work(self, item):
        return item


def test_a_worker_that_never_starts_is_given_up(tmp_path, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(module, "Worker", Ended)
    monkeypatch.setattr(module, "RESTARTS", 1)

    with pytest.raises(InputError, match="ended each time it started; the machine may"):
        next(doubled(tmp_path, [3]))


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (
            Workers(engine="ray", threads=4),
            "one of 4 processors and 0 GPUs does not fit a cluster of 2 and 0",
        ),
        (Workers(engine="ray", gpus=0.5), "one of 1 processors and 0.5 GPUs"),
    ],
)
def test_workers_that_do_not_fit_are_refused(workers, message, tmp_path):
    with (
        pytest.raises(InputError, match=message),
        worker_pool(workers, doubling, graves=tmp_path),
    ):
        pass


@pytest.mark.parametrize("given", [True, False])
def test_without_a_connection_it_joins_a_cluster_or_starts_its_own(
    given, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(calls))
    monkeypatch.setattr(ray, "init", lambda place, **_: calls.append(place))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    if given:
        monkeypatch.setenv("RAY_ADDRESS", "there:1")

    with worker_pool(Workers(engine="ray", workers=1), doubling, graves=tmp_path):
        pass

    assert calls == ["there:1" if given else "local", "shutdown"]
