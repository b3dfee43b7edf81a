"""The seconds of a prompt: a budget of them, and how many each stage takes."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


class Deadline:
    """Tells before each pass whether it fits into a budget of seconds, counted from now.

    It expects a pass, with its steps, to take as long as the slowest one so far, and
    proportionally longer on a longer passage.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:  # NaN too
            raise ValueError(f"adapted: seconds must be above 0, got {seconds}")
        self._end = perf_counter() + seconds
        # The seconds of the slowest pass, and the tokens of its passage.
        self._slowest = (0.0, 1)
        self._running: tuple[float, int] | None = None

    def allows(self, tokens: int) -> bool:
        """Whether a pass on a passage of so many tokens may start now. If so, it must."""
        now = perf_counter()
        if self._running is not None:
            start, length = self._running
            self._slowest = max(self._slowest, (now - start, length))
        self._running = now, tokens
        seconds, length = self._slowest
        expected = seconds * max(1.0, tokens / length)
        return now < self._end and now + expected <= self._end


class StageClock:
    """Counts the seconds of each stage. On CUDA a stage ends when the device has done its work."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._stage: str | None = None
        self._start = 0.0

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count the body's time for ``stage``, except the stages within it."""
        outer = self._stage
        self._enter(stage)
        yield
        self._enter(outer)

    def _enter(self, stage: str | None) -> None:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = perf_counter()
        if self._stage is not None:
            self._seconds[self._stage] += now - self._start
        self._stage, self._start = stage, now

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage."""
        return dict(self._seconds)
