"""Connecting to a Ray cluster, or starting one on this machine, and its workers."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any

import torch

from hullft_ops._checks import check_integer
from hullft_ops._extras import needed_by
from hullft_ops.ttft.errors import ScaleError
from hullft_ops.ttft.model.memory import keep_freed_memory

with needed_by("hullft_ops.ttft.scale", "ray"):
    ray: Any = import_module("ray")

# Workers return small results, which are fetched at once.
_OBJECT_STORE_BYTES = 256 << 20
# A worker that keeps dying on the same work more likely runs out of memory than has bad luck.
ATTEMPTS = 3
_SECONDS_PER_LOOK = 5.0

# Loads what a worker needs, and returns the function that does an item of its work.
Load = Callable[..., Callable[[Any], Any]]


@dataclass(frozen=True)
class Workers:
    """How many worker processes to use, and what each computes with.

    Attributes:
        count: number of workers; None takes as many as the cluster's processors (or GPUs) allow.
        threads: threads of each worker in torch and FAISS. Ray reserves as many processors. The
            last bits of a matrix product depend on it: equal numbers give equal results.
        gpus: GPUs that Ray reserves for each worker; below 1, a share of one.

    TypeError or ValueError if a number is of the wrong type or out of range.
    """

    count: int | None = None
    threads: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.count is not None:
            object.__setattr__(
                self, "count", check_integer("Workers", "count", self.count, 1)
            )
        object.__setattr__(
            self, "threads", check_integer("Workers", "threads", self.threads, 1)
        )
        if not 0 <= self.gpus < inf:
            raise ValueError(f"Workers: gpus must be 0 or more, got {self.gpus}")

    @property
    def device(self) -> str:
        """The device of each worker's model."""
        return "cuda" if self.gpus else "cpu"


@contextmanager
def cluster(workers: Workers) -> Iterator[int]:
    """Connect to Ray for the block, and yield the number of workers; ScaleError if too few fit.

    Uses the Ray that this process is already connected to, else the one at ``RAY_ADDRESS``, else
    one here that sends no usage reports and stops at the end of the block.
    """
    connects = not ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    if connects and (address := os.environ.get("RAY_ADDRESS")):
        ray.init(address, **quiet)
    elif connects:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            "local",
            num_cpus=None if workers.count is None else workers.count * workers.threads,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            **quiet,
        )
    try:
        yield _count(workers, ray.cluster_resources())
    finally:
        if connects:
            ray.shutdown()


def _count(workers: Workers, has: dict[str, float]) -> int:
    needs = {"CPU": float(workers.threads), "GPU": workers.gpus}
    room = min(int(has.get(name, 0.0) / each) for name, each in needs.items() if each)
    if (workers.count or 1) > room:
        gpus = f" and {workers.gpus:g} GPUs" if workers.gpus else ""
        raise ScaleError(
            f"workers: {workers.count or 1} of {workers.threads} processors{gpus} each do not fit "
            f"a cluster of {has.get('CPU', 0.0):g} processors and {has.get('GPU', 0.0):g} GPUs"
        )
    return workers.count or room


class Worker:
    """Loads what it needs with the first item: the exception of a constructor would not arrive."""

    def __init__(self, threads: int, load: Load, arguments: tuple[Any, ...]) -> None:
        self._threads, self._load, self._arguments = threads, load, arguments

    def work(self, item: Any) -> Any:
        return self._function(item)

    @cached_property
    def _function(self) -> Callable[[Any], Any]:
        import faiss

        keep_freed_memory()
        torch.set_num_threads(self._threads)
        faiss.omp_set_num_threads(self._threads)
        return self._load(*self._arguments)


@contextmanager
def staff(
    load: Load, workers: Workers, arguments: Sequence[tuple[Any, ...]]
) -> Iterator[list[Any]]:
    """For the block, a `Worker` for each of ``arguments``. If one dies, another takes over."""
    start = ray.remote(Worker).options(
        num_cpus=workers.threads,
        num_gpus=workers.gpus,
        max_restarts=-1,
        max_task_retries=ATTEMPTS - 1,
    )
    actors = [start.remote(workers.threads, load, given) for given in arguments]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def found_anywhere(name: str) -> str:
    """The name of a model or file, by which a worker in another directory finds it too."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def done_by_workers(
    load: Load, arguments: tuple[Any, ...], tasks: Sequence[Any], workers: Workers
) -> Generator[Any]:
    """The result of every task, as soon as it arrives. Without tasks, no worker starts."""
    if tasks:
        with (
            cluster(workers) as count,
            staff(load, workers, [arguments] * min(count, len(tasks))) as actors,
        ):
            for _, result in completed(actors, tasks):
                yield result


def completed(
    actors: Sequence[Any], items: Iterable[Any], ahead: float = inf
) -> Generator[tuple[int, Any]]:
    """``(position, result)`` of every item, as soon as the result arrives.

    At most one item waits for a worker, and ``ahead`` start past the earliest unfinished one.
    """
    idle, running = deque(actors), dict[Any, tuple[int, Any]]()
    coming = enumerate(items)
    following = next(coming, None)
    while following or running:
        earliest = min((begun for begun, _ in running.values()), default=inf)
        if following and idle and following[0] - earliest < ahead:
            position, item = following
            actor = idle.popleft()
            running[actor.work.remote(item)] = position, actor
            following = next(coming, None)
        else:
            promise, result = first_result(list(running))
            position, actor = running.pop(promise)
            idle.append(actor)
            yield position, result


def in_order(actors: Sequence[Any], items: Iterable[Any], ahead: int) -> Generator[Any]:
    """The results of `completed` in the order of the items. At most ``ahead`` of them wait."""
    kept: dict[int, Any] = {}
    position = 0
    for found, result in completed(actors, items, ahead):
        kept[found] = result
        while position in kept:
            yield kept.pop(position)
            position += 1


def first_result(promises: list[Any]) -> tuple[Any, Any]:
    """The first promise that Ray keeps, and its result; or its worker's error, or a ScaleError."""
    while not (ready := ray.wait(promises, timeout=_SECONDS_PER_LOOK)[0]):
        # Ray itself would wait for another machine.
        if not any(node["Alive"] for node in ray.nodes()):
            raise ScaleError("workers: no machine of the Ray cluster is alive any more")
    try:
        return ready[0], ray.get(ready[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise ScaleError(
            f"workers: the same work ended its worker {ATTEMPTS} times, maybe out of memory: "
            + str(error).splitlines()[0]
        ) from error
