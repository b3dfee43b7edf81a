"""What a benchmark calls to time ours, a peer and the bound."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.timing import Call, Comparison, Pace, Timing, measure, synchronised, warmed_up


class Recorder:
    """Fills one :class:`Comparison`; calls are timed to the end of their work on the device.

    ``benchmark`` is pytest-benchmark's fixture, or None where there is no such report.
    """

    def __init__(
        self,
        benchmark: "BenchmarkFixture | None",
        device: torch.device,
        pace: Pace,
        comparison: Comparison,
    ) -> None:
        self._benchmark = benchmark
        self._device = device
        self.pace = pace
        self.comparison = comparison

    def ours(self, call: Call) -> None:
        """Times the call in pytest-benchmark's pedantic mode, whose own reports then show it."""
        call = synchronised(call, self._device)
        if self._benchmark is None:
            self.comparison.ours = measure(call, self.pace)
            return
        self._benchmark.group = self.comparison.group
        _, rounds = warmed_up(call, self.pace)
        pedantic: Callable[..., object] = self._benchmark.pedantic
        pedantic(call, rounds=max(rounds, 1))
        stats: Any = self._benchmark.stats
        self.comparison.ours = Timing.of(list(stats.stats.data))

    def peer(self, name: str, call: Call, *, setup: Call | None = None, scale: float = 1.0) -> None:
        """Times a peer; see `measure` for ``setup`` and ``scale``."""
        call = synchronised(call, self._device)
        self.comparison.peers[name] = measure(call, self.pace, setup=setup, scale=scale)

    def peer_timed(self, name: str, timing: Timing) -> None:
        """A peer that was timed in another process, at this recorder's pace."""
        self.comparison.peers[name] = timing

    def roofline(self, call: Call, bytes_moved: int) -> None:
        """Times moving ``bytes_moved`` bytes and doing nothing else with them."""
        self.comparison.bytes_moved = bytes_moved
        self.comparison.roofline = measure(synchronised(call, self._device), self.pace)

    def fact(self, name: str, value: float) -> None:
        """A further number worth reporting, such as a share of memory."""
        self.comparison.facts[name] = value
