"""Workers on Ray: how many there are, and a pool of them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt

from hullft_ops._extras import needed_by
from hullft_ops.ttft.validation import InputError, options_class

# A worker that keeps dying on the same work more likely runs out of memory than has bad luck.
RETRIES = 2

# Without a limit, Ray would for ever start a worker that its memory monitor ends each time.
RESTARTS = 5

# Loads what a worker needs, and returns the function that does an item of its work.
Load = Callable[..., Callable[[Any], Any]]


@options_class
class Workers:
    """Where a command computes."""

    engine: Literal["process", "ray"] = "process"
    """process for this process, ray for workers on Ray: on this machine, or on the cluster at
    RAY_ADDRESS."""

    workers: PositiveInt | None = None
    """Workers on Ray at most; None for as many as fit."""

    threads: PositiveInt = 1
    """Threads of each worker. Ray reserves as many processors."""

    gpus: NonNegativeFloat = 0.0
    """GPUs that Ray reserves for each worker; below 1, a share of one."""


class Worker:
    """An actor. It loads with its first item: the exception of a constructor would not arrive."""

    def __init__(
        self, folder: Path, threads: int, load: Load, arguments: dict[str, Any]
    ) -> None:
        self._folder = folder
        self._threads = threads
        self._load = load
        self._arguments = arguments

    def work(self, item: Any) -> Any:
        return self._function(item)

    @cached_property
    def _function(self) -> Callable[[Any], Any]:
        import faiss

        # The command may have named files from there.
        os.chdir(self._folder)
        torch.set_num_threads(self._threads)
        faiss.omp_set_num_threads(self._threads)
        return self._load(**self._arguments)


@contextmanager
def worker_pool(workers: Workers, load: Load, **arguments: Any) -> Iterator[Any]:
    """For the block, a `ray.util.ActorPool` of `Worker`. If one dies, another does its work.

    It uses the Ray that this process is connected to, else the cluster at ``RAY_ADDRESS``, else
    a Ray of its own on this machine, which sends no usage reports and ends with the block.

    Raises:
        ImportError: Ray is not installed.
        InputError: the cluster has no room for a worker, or the same work has ended a worker three
            times.
    """
    with needed_by("engine ray", "ray"):
        import ray
        from ray.util import ActorPool

    connects = not ray.is_initialized()
    if connects:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            os.environ.get("RAY_ADDRESS") or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=40,  # errors
        )
    actors: list[Any] = []
    try:
        start = ray.remote(Worker).options(
            num_cpus=workers.threads,
            num_gpus=workers.gpus,
            max_restarts=RESTARTS,
            max_task_retries=RETRIES,
        )
        count = _count(workers, ray.cluster_resources())  # type: ignore[no-untyped-call]
        for _ in range(count):
            actors.append(start.remote(Path.cwd(), workers.threads, load, arguments))
        yield ActorPool(actors)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        raise InputError(
            f"workers: the same work has ended its worker {RETRIES + 1} times, or a worker was "
            "ended each time it started; the machine may have run out of memory"
        ) from error
    finally:
        for actor in actors:
            ray.kill(actor)
        if connects:
            ray.shutdown()


def do_item(worker: Any, item: Any) -> Any:
    """Has a worker of a pool do an item; for `ActorPool.submit`."""
    return worker.work.remote(item)


def _count(workers: Workers, cluster: dict[str, float]) -> int:
    """How many workers to start, as many as fit: Ray would wait for room."""
    room = int(cluster.get("CPU", 0) / workers.threads)
    if workers.gpus:
        room = min(room, int(cluster.get("GPU", 0) / workers.gpus))
    if not room:
        raise InputError(
            f"workers: one of {workers.threads} processors and {workers.gpus:g} GPUs does not fit "
            f"a cluster of {cluster.get('CPU', 0):g} and {cluster.get('GPU', 0):g}"
        )
    return min(workers.workers or room, room)
