"""The passes on a support, the steps that they serve, and the time they take."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from time import perf_counter

import numpy as np
import torch

from hullft_ops.ttft.config import TTFTConfig


@dataclass(frozen=True)
class Pass:
    """A forward-backward pass on a passage, and the consecutive steps with its gradient.

    Attributes:
        passage: its position in the support; that of the prompt is the number of passages.
        start: how many steps come before.
        repeats: how many steps.
    """

    passage: int
    start: int
    repeats: int


def schedule(
    counts: Sequence[int], config: TTFTConfig, prompt_count: int = 0
) -> list[Pass]:
    """The passes for passages with these counts, one for every ``refresh`` steps, and then those on
    the prompt.

    In the order "grouped" the passes on a passage follow one another, as in arXiv:2605.30337.
    """
    order = _grouped if config.order == "grouped" else _balanced
    refresh = config.refresh
    on_passages = order(np.array(counts), refresh)
    on_prompt = [len(counts)] * math.ceil(prompt_count / refresh)
    counts = [*counts, prompt_count]
    done = [0] * len(counts)
    passes: list[Pass] = []
    start = 0
    for passage in chain(on_passages, on_prompt):
        repeats = min(refresh, counts[passage] - done[passage])
        passes.append(Pass(passage, start, repeats))
        done[passage] += repeats
        start += repeats
    return passes


def _grouped(counts: np.ndarray, refresh: int) -> Iterator[int]:
    for passage, count in enumerate(counts):
        for _ in range(0, count, refresh):
            yield passage


def _balanced(counts: np.ndarray, refresh: int) -> Iterator[int]:
    """Each pass is on the passage that then exceeds its share of the steps least.

    No passage has its first pass before one that is heavier, which stands before it: a budget may
    end the training at any pass.
    """
    done = np.zeros_like(counts)
    while (done < counts).any():
        after = np.minimum(done + refresh, counts)
        steps = done.sum() + after - done
        excess = after - steps * counts / counts.sum()
        excess[done == counts] = np.inf
        unbegun = np.flatnonzero((done == 0) & (counts > 0))
        excess[unbegun[1:]] = np.inf
        passage = int(excess.argmin())
        done[passage] = after[passage]
        yield passage


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

    def __init__(self, device: torch.device) -> None:
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
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = perf_counter()
        if self._stage is not None:
            self._seconds[self._stage] += now - self._start
        self._stage, self._start = stage, now

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage."""
        return dict(self._seconds)
