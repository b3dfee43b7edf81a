"""The steps on a support: their order, their gradients, their learning rates and their time."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch

from hullft_ops._checks import check_integer

ORDERS = ("grouped", "interleaved")
# The factor on the learning rate at a step of so many, counted from 0.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, steps: 1.0,
    "linear": lambda step, steps: 1 - step / steps,
    "cosine": lambda step, steps: (1 + math.cos(math.pi * step / steps)) / 2,
}


@dataclass(frozen=True)
class Sweep:
    """Consecutive steps with one gradient."""

    example: int  # its position in the support
    fresh: bool  # compute the gradient; otherwise use the one that was kept for the example
    repeats: int  # how many steps
    keep: bool  # a later sweep needs the gradient too


def refreshes_of(
    refresh: int | Callable[[int], int], counts: Sequence[int]
) -> list[int]:
    """For each text, how many steps to take with a gradient."""
    if not callable(refresh):
        return [refresh] * len(counts)
    # A text without steps has no gradient. No function should have to expect that.
    found = [refresh(count) if count else 1 for count in counts]
    return [check_integer("TestTimeFinetuner", "refresh", one, 1) for one in found]


def plan(
    counts: Sequence[int], refreshes: Sequence[int], order: str
) -> Iterator[Sweep]:
    """The sweeps for examples with these counts, with a gradient for every ``refresh`` steps:
    "grouped" as in arXiv:2605.30337, "interleaved" round the examples that have steps left."""
    examples = list(enumerate(zip(counts, refreshes, strict=True)))
    if order == "grouped":
        for example, (count, refresh) in examples:
            for done in range(0, count, refresh):
                yield Sweep(example, True, min(refresh, count - done), False)
        return
    for done in range(max(counts, default=0)):
        for example, (count, refresh) in examples:
            if done < count:
                keep = done + 1 < count and (done + 1) % refresh != 0
                yield Sweep(example, done % refresh == 0, 1, keep)


class Budget:
    """Tells before each sweep whether it fits into the time up to a deadline on `perf_counter`.

    It expects a pass to take as long as the slowest one so far, and proportionally longer on a
    longer text, and a replay as long as the slowest replay. It waits for work on ``devices``.
    """

    def __init__(self, deadline: float, devices: Iterable[torch.device]) -> None:
        self._deadline = deadline
        self._devices = {device for device in devices if device.type != "cpu"}
        # Of passes and of replays: the seconds of the slowest one, and the tokens of its text.
        self._slowest = {True: (0.0, 1), False: (0.0, 1)}
        self._started: tuple[float, int, bool] | None = None

    def allows(self, tokens: int, *, fresh: bool) -> bool:
        """Whether a sweep, a pass if it is ``fresh``, may start now. If so, it must."""
        for device in self._devices:
            torch.accelerator.synchronize(device)
        now = perf_counter()
        if self._started is not None:
            start, length, kind = self._started
            self._slowest[kind] = max(self._slowest[kind], (now - start, length))
        self._started = now, tokens, fresh
        seconds, length = self._slowest[fresh]
        # A replay does not read its text.
        expected = seconds * max(1.0, tokens / length) if fresh else seconds
        return now < self._deadline and now + expected <= self._deadline


class StageClock:
    """Counts the seconds of each stage, on CUDA by events in its stream, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self._now: Callable[[], Any] = (
            partial(_cuda_event, device) if on_cuda else perf_counter
        )
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
        spans = self._spans[stage]
        if all(isinstance(start, float) for start, _ in spans):
            return sum((end - start for start, end in spans), 0.0)
        return float(sum(start.elapsed_time(end) for start, end in spans)) / 1e3


def _cuda_event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    # The device need not be the current one.
    event.record(torch.cuda.current_stream(device))
    return event
