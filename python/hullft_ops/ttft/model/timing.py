"""Seconds spent in each stage of the work on a device."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import torch


class StageClock:
    """Times stages without waiting for the device.

    On CUDA two events in the device's current stream mark a stage, on other devices two readings of
    the clock.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self._now: Callable[[], Any] = partial(_cuda_event, device) if on_cuda else perf_counter
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self._stage: str | None = None
        self._start: Any = None

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count the body's time for ``stage``, except the stages within it."""
        around = self._stage
        self._go_over_to(stage)
        yield
        self._go_over_to(around)

    def _go_over_to(self, stage: str | None) -> None:
        now = self._now()
        if self._stage is not None:
            self._spans[self._stage].append((self._start, now))
        self._stage, self._start = stage, now

    def seconds(self, stage: str) -> float:
        """Seconds counted for ``stage``. On CUDA the device must have finished it."""
        return sum(_between(start, end) for start, end in self._spans[stage])


def _cuda_event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    # The device need not be the current one.
    event.record(torch.cuda.current_stream(device))
    return event


def _between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1e3
