"""Workers that die, raise, or find no room; a cluster whose machines are gone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from hullft_ops.ttft.errors import ScaleError
from hullft_ops.ttft.scale.cluster import Workers, cluster, completed, in_order, staff
from on_ray import CPUS

pytestmark = pytest.mark.long

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


@contextmanager
def toys(count: int, graves: Path) -> Iterator[list[Any]]:
    # Classes of a test file are not importable where the workers are.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with (
        cluster(Workers(count)),
        staff(Toy, Workers(count), [(graves,)] * count) as actors,
    ):
        yield actors


def test_results_come_in_order_though_a_worker_dies(tmp_path: Path) -> None:
    numbers = [3, 1, -1, 4, 1, 5, 9, 2, 6]
    with toys(2, tmp_path) as actors:
        assert list(in_order(actors, numbers, ahead=3)) == [2 * n for n in numbers]
    assert len(list(tmp_path.iterdir())) == 1


def test_work_that_ends_every_worker_is_given_up(tmp_path: Path) -> None:
    with (
        toys(1, tmp_path) as actors,
        pytest.raises(ScaleError, match="the same work ended its worker 3 times"),
    ):
        list(in_order(actors, [1, -2, 3], ahead=3))
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_worker_raises_arrives_and_no_more_is_begun_than_asked(
    tmp_path: Path,
) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1, 9):
            begun.append(number)
            yield number

    with toys(1, tmp_path) as actors:
        with pytest.raises(KeyError, match="zero"):
            list(in_order(actors, [1, 0, 3], ahead=3))
        results = completed(actors, items())
        assert next(results) == (0, 2)
        # One is looked at to know whether there is another.
        assert begun == [1, 2]
        results.close()


@pytest.mark.cpu_only("no operator runs")
def test_a_cluster_without_machines_is_not_waited_for() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", LOST]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    last = done.stdout.splitlines()[-1]
    assert last == "workers: no machine of the Ray cluster is alive any more"


def test_workers_that_do_not_fit_are_refused() -> None:
    with (
        pytest.raises(
            ScaleError, match="4 of 1 processors each do not fit a cluster of 3"
        ),
        cluster(Workers(4)),
    ):
        pass
    with (
        pytest.raises(ScaleError, match="1 processors and 0.5 GPUs"),
        cluster(Workers(gpus=0.5)),
    ):
        pass


def test_as_many_workers_as_there_is_room_for() -> None:
    with cluster(Workers(threads=1)) as count:
        assert count == CPUS
