"""The steps on a support, the gradients that they share, and the time they take."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from hullft_ops._checks import check_integer
from hullft_ops.ttft.config import TTFTConfig


@dataclass(frozen=True)
class Sweep:
    """A pass on a passage, and the consecutive steps with its gradient.

    Attributes:
        passage: its position in the support.
        start: how many steps come before.
        repeats: how many steps.
    """

    passage: int
    start: int
    repeats: int


def plan(counts: Sequence[int], config: TTFTConfig) -> list[Sweep]:
    """The sweeps for passages with these counts, with a gradient for every ``refresh`` steps.

    In the order "grouped" the passes on a passage follow one another, as in arXiv:2605.30337.
    """
    refreshes = [_refresh_of(count, config) for count in counts]
    done = [0] * len(counts)
    sweeps: list[Sweep] = []
    start = 0
    for passage in _order(counts, refreshes, config):
        repeats = min(refreshes[passage], counts[passage] - done[passage])
        sweeps.append(Sweep(passage, start, repeats))
        done[passage] += repeats
        start += repeats
    return sweeps


def _order(
    counts: Sequence[int], refreshes: Sequence[int], config: TTFTConfig
) -> Iterator[int]:
    """The passage of each pass."""
    if config.order == "balanced":
        yield from _balanced(np.array(counts), np.array(refreshes))
        return
    for passage, count in enumerate(counts):
        for _ in range(0, count, refreshes[passage]):
            yield passage


def _balanced(counts: np.ndarray, refreshes: np.ndarray) -> Iterator[int]:
    """Each pass is on the passage that then exceeds its share of the steps least."""
    done = np.zeros_like(counts)
    while (done < counts).any():
        after = np.minimum(done + refreshes, counts)
        steps = done.sum() + after - done
        excess = after - steps * counts / counts.sum()
        excess[done == counts] = np.inf
        passage = int(excess.argmin())
        done[passage] = after[passage]
        yield passage


def steps_on_each(sweeps: Sequence[Sweep], passages: int) -> list[int]:
    """The steps of these sweeps on each passage of a support."""
    steps = [0] * passages
    for sweep in sweeps:
        steps[sweep.passage] += sweep.repeats
    return steps


def _refresh_of(count: int, config: TTFTConfig) -> int:
    if not callable(config.refresh):
        return config.refresh
    # A passage without steps has no gradient. No function should have to expect that.
    refresh = config.refresh(count) if count else 1
    return check_integer("TTFTConfig", "refresh", refresh, 1)


class Deadline:
    """Tells before each pass whether it fits into a budget of seconds, counted from now.

    It expects a pass, with its steps, to take as long as the slowest one so far, and
    proportionally longer on a longer passage. It waits for work on ``devices``.
    """

    def __init__(self, seconds: float, devices: Iterable[torch.device]) -> None:
        self._end = perf_counter() + seconds
        self._devices = {device for device in devices if device.type != "cpu"}
        # The seconds of the slowest pass, and the tokens of its passage.
        self._slowest = (0.0, 1)
        self._running: tuple[float, int] | None = None

    def allows(self, tokens: int) -> bool:
        """Whether a pass on a passage of so many tokens may start now. If so, it must."""
        for device in self._devices:
            torch.accelerator.synchronize(device)
        now = perf_counter()
        if self._running is not None:
            start, length = self._running
            self._slowest = max(self._slowest, (now - start, length))
        self._running = now, tokens
        seconds, length = self._slowest
        expected = seconds * max(1.0, tokens / length)
        return now < self._end and now + expected <= self._end


class StageClock:
    """Counts the seconds of each stage, on CUDA by events in its stream, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self._stage: str | None = None
        self._start: Any = None

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count the body's time for ``stage``, except the stages within it."""
        outer = self._stage
        self._enter(stage)
        yield
        self._enter(outer)

    def _enter(self, stage: str | None) -> None:
        now = self._now()
        if self._stage is not None:
            self._spans[self._stage].append((self._start, now))
        self._stage, self._start = stage, now

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        # The device need not be the current one.
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage. On CUDA the device must have finished them."""
        seconds: dict[str, float] = {}
        for stage, spans in self._spans.items():
            if self._device.type == "cuda":
                milliseconds = sum(start.elapsed_time(end) for start, end in spans)
                seconds[stage] = milliseconds / 1e3
            else:
                seconds[stage] = sum(end - start for start, end in spans)
        return seconds
