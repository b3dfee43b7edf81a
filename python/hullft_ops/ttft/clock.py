"""The seconds of a prompt: a budget of them, and how many each stage takes."""

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


@contextmanager
def timed(
    seconds: dict[str, float], stage: str, device: torch.device | None = None
) -> Iterator[None]:
    """Add the body's time to a stage's seconds. On CUDA, the body ends with the device's work."""
    start = perf_counter()
    yield
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = seconds.get(stage, 0.0) + perf_counter() - start
