"""Connecting to a Ray cluster, or starting one on this machine, and its workers."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import torch

from hullft_ops._checks import check_integer
from hullft_ops._extras import needed_by
from hullft_ops.ttft.errors import ScaleError

# Workers return small results, which are fetched at once.
_OBJECT_STORE_BYTES = 256 << 20
# A worker that keeps dying on the same work more likely runs out of memory than has bad luck.
ATTEMPTS = 3
_SECONDS_PER_LOOK = 5.0

Item = TypeVar("Item")


@dataclass(frozen=True)
class Workers:
    """How many worker processes to use, and what each computes with.

    Attributes:
        count: number of workers; None takes as many as the cluster's processors (or GPUs) allow.
        threads: threads of each worker in torch and FAISS. Ray reserves as many processors. The
            last bits of a matrix product depend on it: equal numbers give equal results.
        gpus: GPUs that Ray reserves for each worker; below 1, a share of one.

    Raises:
        TypeError, ValueError: a number is of the wrong type or out of range.
    """

    count: int | None = None
    threads: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.count is not None:
            object.__setattr__(self, "count", check_integer("Workers", "count", self.count, 1))
        object.__setattr__(self, "threads", check_integer("Workers", "threads", self.threads, 1))
        if not 0 <= self.gpus < float("inf"):
            raise ValueError(f"Workers: gpus must be 0 or more, got {self.gpus}")


@contextmanager
def cluster(workers: Workers) -> Iterator[Workers]:
    """Connect to Ray for the block, and yield ``workers`` with their count filled in.

    Uses the Ray that this process is already connected to, else the one at ``RAY_ADDRESS``. Without
    either, starts one here that sends no usage reports and stops at the end of the block.

    Raises:
        ImportError: Ray is not installed.
        ScaleError: the cluster is too small for the workers.
    """
    ray = import_ray()
    connected = not ray.is_initialized()
    if connected and (address := os.environ.get("RAY_ADDRESS")):
        ray.init(address, log_to_driver=False, logging_level="warning")
    elif connected:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            "local",
            num_cpus=None if workers.count is None else workers.count * workers.threads,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
        )
    try:
        yield _counted(workers, ray.cluster_resources())
    finally:
        if connected:
            ray.shutdown()


@contextmanager
def staff(
    worker: type, workers: Workers, arguments: Sequence[tuple[Any, ...]]
) -> Iterator[list[Any]]:
    """Worker processes for the block. If one dies, another takes over its place and its work.

    The constructor's first argument is ``workers.threads``, and ``arguments`` has the others for
    each worker. Do what may fail in a method, not in the constructor: a method's exception arrives
    intact.
    """
    ray = import_ray()
    start = ray.remote(worker).options(
        num_cpus=workers.threads,
        num_gpus=workers.gpus,
        max_restarts=-1,
        max_task_retries=ATTEMPTS - 1,
    )
    actors = [start.remote(workers.threads, *given) for given in arguments]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def use_threads(threads: int) -> None:
    """Compute with this many threads in this process."""
    import faiss

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def found_anywhere(name: str) -> str:
    """The name of a model or file, by which a worker in another directory finds it too."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def import_ray() -> Any:
    """The module ``ray``; an ImportError says that it is not installed, and how to install it."""
    with needed_by("hullft_ops.ttft.scale", "ray"):
        import ray
    return ray


def _counted(workers: Workers, has: dict[str, float]) -> Workers:
    needs = {"CPU": float(workers.threads), "GPU": workers.gpus}
    room = min(int(has.get(name, 0.0) / each) for name, each in needs.items() if each)
    count = room if workers.count is None else workers.count
    if count > room or not room:
        gpus = f" and {workers.gpus:g} GPUs" if workers.gpus else ""
        raise ScaleError(
            f"workers: {max(count, 1)} of {workers.threads} processors{gpus} each do not fit a "
            f"cluster of {has.get('CPU', 0.0):g} processors and {has.get('GPU', 0.0):g} GPUs"
        )
    return replace(workers, count=count)


def completed(
    actors: Sequence[Any],
    items: Iterable[Item],
    begin: Callable[[Any, Item], Any],
    ahead: float = inf,
) -> Generator[tuple[int, Any]]:
    """``(position, result)`` of every item, as soon as the result arrives.

    A worker works on one item at a time, and an item is taken only when a worker is idle. ``begin``
    returns Ray's promise of the result. ``ahead`` limits how many items may start past the earliest
    unfinished one.

    Raises:
        ScaleError: an item killed its worker and the workers that replaced it, or no machine of
            the cluster is left.
    """
    idle, running = deque(actors), dict[Any, tuple[int, Any]]()
    waiting = enumerate(items)
    entry = next(waiting, None)
    while entry is not None or running:
        while entry is not None and idle:
            if entry[0] - min((found for found, _ in running.values()), default=inf) >= ahead:
                break
            actor = idle.popleft()
            running[begin(actor, entry[1])] = entry[0], actor
            entry = next(waiting, None)
        ready = first_ready(list(running))
        position, actor = running.pop(ready)
        yield position, fetched(ready)
        idle.append(actor)


def in_order(
    actors: Sequence[Any], items: Iterable[Item], begin: Callable[[Any, Item], Any], ahead: int
) -> Generator[Any]:
    """The results of `completed` in the order of the items. At most ``ahead`` of them wait."""
    kept: dict[int, Any] = {}
    position = 0
    for found, result in completed(actors, items, begin, ahead):
        kept[found] = result
        while position in kept:
            yield kept.pop(position)
            position += 1


def first_ready(promises: list[Any]) -> Any:
    """The first promise that Ray has kept, or that has failed.

    If no machine of the cluster is left, that is a ScaleError. Ray itself would wait for another.
    """
    ray = import_ray()
    while True:
        ready, _ = ray.wait(promises, timeout=_SECONDS_PER_LOOK)
        if ready:
            return ready[0]
        if not any(node["Alive"] for node in ray.nodes()):
            raise ScaleError("workers: no machine of the Ray cluster is alive any more")


def fetched(promise: Any) -> Any:
    """The result that Ray promised. Raises the exception of a worker that failed.

    If the worker died `ATTEMPTS` times, that is a ScaleError.
    """
    ray = import_ray()
    try:
        return ray.get(promise)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise ScaleError(
            f"workers: the same work ended its worker {ATTEMPTS} times, maybe out of memory: "
            + str(error).splitlines()[0]
        ) from error
