"""Handing out work to workers as they become idle."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

from hullft_ops.ttft.errors import ScaleError
from hullft_ops.ttft.scale.cluster import ATTEMPTS, import_ray

Item = TypeVar("Item")

_SECONDS_PER_LOOK = 5.0


def completed(
    actors: Sequence[Any],
    items: Iterable[Item],
    begin: Callable[[Any, Item], Any],
    ahead: int | None = None,
) -> Generator[tuple[int, Any]]:
    """``(position, result)`` of every item, as soon as the result arrives.

    Args:
        actors: the workers; each works on one item at a time.
        items: an item is taken only when a worker is idle.
        begin: starts an item on a worker and returns Ray's promise of the result.
        ahead: how many items may start past the earliest unfinished one; None for any number.

    Raises:
        ScaleError: an item killed its worker and the workers that replaced it, or no machine of
            the cluster is left.
    """
    idle, running = deque(actors), dict[Any, tuple[int, Any]]()
    waiting = enumerate(items)
    entry = next(waiting, None)
    while entry is not None or running:
        while entry is not None and idle and _near(entry[0], running, ahead):
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

    Raises:
        ScaleError: no machine of the cluster is left. Ray itself would wait for another.
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

    Raises:
        ScaleError: the worker died `ATTEMPTS` times.
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


def _near(position: int, running: dict[Any, tuple[int, Any]], ahead: int | None) -> bool:
    if ahead is None or not running:
        return True
    return position - min(found for found, _ in running.values()) < ahead
