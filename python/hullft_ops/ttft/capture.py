"""Recording calls as CUDA graphs, so that a capture that fails leaves torch as it was.

Read against the sources of torch 2.11 to 2.13. Nobody has captured a pass on a GPU yet.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

# torch allows one capture at a time in a process, and filters of warnings are the process's too.
_ALONE = threading.Lock()
# Graphs whose capture failed. torch 2.11 asks them at each allocation of pinned memory, for good.
_FAILED: list[Any] = []
_WAITS = "called a synchronizing CUDA operation"
_PROTOTYPE = "Synchronization debug mode is a prototype"


class Recorder:
    """Records calls on one device. Their graphs share a pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def rehearse(self, run: Callable[[], Tensor]) -> Tensor:
        """Run a call on the stream of captures, between what the current stream does.

        Libraries then keep their memory for that stream outside the graphs' pool, and autograd
        accumulates gradients on it.
        """
        stream: Any = torch.cuda.current_stream(self._device)
        captures = _capture_stream(self._device)
        captures.wait_stream(stream)
        try:
            with torch.cuda.stream(captures):
                result = run()
        finally:
            stream.wait_stream(captures)
        result.record_stream(stream)
        return result

    def record(self, run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """Record a call without running it.

        Returns:
            A graph, whose ``replay()`` runs the call, and its result, which each replay fills.

        Raises:
            RuntimeError: the call cannot be captured. Then the caller must drop all graphs of this
                recorder, and `release` the pool.
        """
        # torch refuses a pool whose graphs are all gone.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        index = self._device.index
        with (
            _ALONE,
            torch.cuda.device(self._device),
            # torch would leave its stream current if the capture fails.
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            _other_generator_state(torch.cuda.default_generators[index]),
        ):
            try:
                with torch.cuda.graph(
                    graph,
                    self._pool,
                    _capture_stream(self._device),
                    "thread_local",  # other threads may call CUDA
                ):
                    result = run()
            except BaseException:
                # If the driver refuses to end a capture, torch 2.11 leaves the allocator in it.
                with suppress(AttributeError, RuntimeError):
                    torch._C._cuda_endAllocateToPool(index, self._pool)
                graph.reset()
                _FAILED.append(graph)
                raise
        return graph, result

    def release(self) -> None:
        """Return the memory of the pool. Its graphs and their tensors must be gone."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        torch.cuda.empty_cache()
        # Up to torch 2.13, a graph keeps its share of the pool if its capture failed: then memory
        # stays that nothing uses.
        if _has_unused_memory(self._device.index, pool):
            torch._C._cuda_releasePool(self._device.index, pool)
            torch.cuda.empty_cache()

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Fill the list, at the end of the body, with a line for each wait for a device."""
        waits: list[str] = []
        mode = torch.cuda.get_sync_debug_mode()
        caught: list[warnings.WarningMessage] = []
        try:
            with _ALONE, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode(mode or "warn")
                try:
                    yield waits
                finally:
                    torch.cuda.set_sync_debug_mode(mode)
        finally:
            for warning in caught:
                message = str(warning.message)
                if _WAITS in message:
                    waits.append(f"{warning.filename}:{warning.lineno}")
                elif not message.startswith(_PROTOTYPE):
                    _warn_again(warning)


# cuBLAS keeps 32 MiB for each stream.
@cache
def _capture_stream(device: torch.device) -> Any:
    # Its blocks come before those of a branch.
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@cache
def _branch_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def branch(device: torch.device) -> Iterator[Callable[[Callable[[], None]], None]]:
    """A branch of the graph that captures the current stream; it joins at the end of the body.

    What the yielded function is called with launches there, after all that the stream has launched
    by then and beside what follows. Tensors in use there must live until the end of the body.
    """
    stream: Any = torch.cuda.current_stream(device)
    beside = _branch_stream(device)
    # Without a fork there is nothing to join.
    beside.wait_stream(stream)

    def launch(work: Callable[[], None]) -> None:
        beside.wait_stream(stream)
        with torch.cuda.stream(beside):
            work()

    try:
        yield launch
    finally:
        stream.wait_stream(beside)


@contextmanager
def _other_generator_state(generator: torch.Generator) -> Iterator[None]:
    """Keep a capture that fails from leaving the process's generator in it, as torch 2.11 does."""
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)


def _has_unused_memory(index: int, pool: Any) -> bool:
    for segment in torch.cuda.memory_snapshot():  # type: ignore[no-untyped-call]
        place = segment["device"], tuple(segment["segment_pool_id"])
        if place == (index, pool) and segment["active_size"] == 0:
            return True
    return False


def _warn_again(warning: warnings.WarningMessage) -> None:
    warnings.warn_explicit(
        message=warning.message,
        category=warning.category,
        filename=warning.filename,
        lineno=warning.lineno,
    )
