"""The recorder that times ours, a peer and a sweep of the same bytes for a benchmark."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.timing import (
    Call,
    Comparison,
    Pace,
    Timing,
    measure,
    measure_in_turns,
    synchronised,
    warmed_up,
)


class Recorder:
    """Fills one :class:`Comparison`. Times calls to the end of their work on the device.

    ``benchmark`` is pytest-benchmark's fixture, or None outside pytest.
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
        self._ours: Call | None = None
        self._alone = False

    def ours(self, call: Call) -> None:
        """Times the call in pytest-benchmark's pedantic mode, so its own reports show it too."""
        call = self._ours = synchronised(call, self._device)
        if self._benchmark is None:
            self.comparison.ours = measure(call, self.pace)
            return
        self._benchmark.group = self.comparison.group
        _, seconds = warmed_up(call)
        pedantic: Callable[..., object] = self._benchmark.pedantic
        pedantic(call, rounds=self.pace.rounds(seconds))
        stats: Any = self._benchmark.stats
        self.comparison.ours = Timing.of(list(stats.stats.data))

    def let_go(self) -> None:
        """Drops ours, because the others need its memory. From now on they are timed alone."""
        self._ours, self._alone = None, True

    def peer(self, name: str, call: Call, *, scale: float = 1.0) -> None:
        """Times a peer in turns with ours. `measure` explains ``scale``."""
        self.comparison.peers[name], ratio = self._compared(call, scale)
        self.comparison.ratios[name] = ratio

    def peer_timed(self, name: str, timing: Timing) -> None:
        """Records a peer that another process has timed, at this recorder's pace."""
        self.comparison.peers[name] = timing

    def sweep(self, call: Call, bytes_moved: int) -> None:
        """Times how long plain torch takes to move ``bytes_moved`` bytes, in turns with ours.

        It is a reference, not a lower limit: ours may be faster.
        """
        self.comparison.bytes_moved = bytes_moved
        self.comparison.roofline, ratio = self._compared(call)
        self.comparison.times_roofline = 1 / ratio

    def times(self, name: str, call: Call) -> None:
        """Records as a fact how many times longer ours takes than the call, in turns with it."""
        _, ratio = self._compared(call)
        self.fact(name, 1 / ratio)

    def fact(self, name: str, value: float) -> None:
        """Records another number worth reporting, such as a share of memory."""
        self.comparison.facts[name] = value

    def _compared(self, call: Call, scale: float = 1.0) -> tuple[Timing, float]:
        """The call's time, and how many times longer it takes than ours."""
        call = synchronised(call, self._device)
        if self._alone:
            timing = measure(call, self.pace, scale=scale)
            return timing, timing.seconds / self.comparison.seconds
        if self._ours is None:
            raise RuntimeError(
                "Recorder: ours must be timed before what it is compared with"
            )
        return measure_in_turns(self._ours, call, self.pace, scale=scale)
