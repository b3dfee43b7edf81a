"""Ending a training in time."""

from collections.abc import Iterable
from time import perf_counter

import torch


class Budget:
    """Tells before each sweep whether it fits into the time that is left.

    It expects a pass to take as long as the slowest one so far. If the next text has more tokens
    than the text of that pass, it expects proportionally more. A replay is expected to take as long
    as the slowest replay. Nothing starts after the deadline, so even a sweep that takes longer than
    expected is the only one that ends late.

    Args:
        deadline: when `perf_counter` says that time is up.
        devices: where the work runs. Unless it is the CPU, each question waits for it: until the
            work is done, nobody knows how long it takes.
    """

    def __init__(self, deadline: float, devices: Iterable[torch.device]) -> None:
        self._deadline = deadline
        self._devices = {device for device in devices if device.type != "cpu"}
        # Of passes and of replays: the seconds of the slowest one, and the tokens of its text.
        self._slowest = {True: (0.0, 1), False: (0.0, 1)}
        self._started: tuple[float, int, bool] | None = None

    def allows(self, tokens: int, *, fresh: bool) -> bool:
        """Whether a sweep may start now. If so it must, and end before the next question.

        Args:
            tokens: the length of its text.
            fresh: whether it is a pass, not a replay.
        """
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
