"""The recorder that times ours, its peers and a sweep of the same bytes for a benchmark."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.timing import (
    Call,
    Pace,
    measure,
    measure_in_turns,
    synchronised,
    warm_seconds,
)

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

SWEEP = "sweep"


@dataclass
class Comparison:
    """One case, all of it measured in the same run.

    Attributes:
        group: the subject of the measurement, such as "selection".
        case: the case within its group.
        seconds: median of this package.
        peers: median seconds of other code that does the same, and of `SWEEP`.
        ratios: how many times longer than ours each of them took, in turns with it.
        facts: other numbers that the benchmark measured.
    """

    group: str
    case: str
    seconds: float = 0.0
    peers: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """The whole comparison on one line of text."""
        parts = [f"{self.group} {self.case}: {format_seconds(self.seconds)}"]
        for peer, seconds in self.peers.items():
            ratio = self.ratios[peer]
            parts.append(f"{ratio:.3g}x {peer} ({format_seconds(seconds)})")
        for name, value in self.facts.items():
            parts.append(f"{name} {value:.3g}")
        return ", ".join(parts)


class Recorder:
    """Fills one :class:`Comparison`. Times calls to the end of their work on the device.

    ``benchmark`` is pytest-benchmark's fixture, or None outside pytest.
    """

    def __init__(
        self,
        comparison: Comparison,
        device: torch.device,
        pace: Pace,
        benchmark: "BenchmarkFixture | None" = None,
    ) -> None:
        self.comparison = comparison
        self.pace = pace
        self._device = device
        self._benchmark = benchmark
        self._ours: Call | None = None

    def ours(self, call: Call) -> None:
        """Times the call in pytest-benchmark's pedantic mode, so its own reports show it too."""
        call = synchronised(call, self._device)
        self._ours = call
        if self._benchmark is None:
            self.comparison.seconds = measure(call, self.pace)
            return
        self._benchmark.group = self.comparison.group
        rounds = self.pace.rounds(warm_seconds(call))
        pedantic: Callable[..., object] = self._benchmark.pedantic
        pedantic(call, rounds=rounds)
        stats: Any = self._benchmark.stats
        self.comparison.seconds = stats.stats.median

    def peer(self, name: str, call: Call, *, scale: float = 1.0) -> None:
        """Times a peer in turns with ours.

        ``scale`` multiplies its time: a peer that takes queries one by one is timed on only a few
        of a large batch.
        """
        if self._ours is None:
            raise RuntimeError("Recorder: ours must be timed before its peers")
        call = synchronised(call, self._device)
        seconds, ratio = measure_in_turns(self._ours, call, self.pace)
        self.comparison.peers[name] = scale * seconds
        self.comparison.ratios[name] = scale * ratio

    def sweep(self, call: Call, bytes_moved: int) -> None:
        """Times how long plain torch takes to move the bytes that ours must move at least once.

        It is a reference, not a lower limit: ours may be faster.
        """
        self.peer(SWEEP, call)
        self.fact("GB/s", bytes_moved / self.comparison.seconds / 1e9)

    def sweep_of(self, tensor: torch.Tensor) -> None:
        """`sweep` for what must read the tensor once, whatever its dtype."""
        words = tensor.view(torch.int32)
        self.sweep(words.amax, words.numel() * words.element_size())

    def fact(self, name: str, value: float) -> None:
        """Records another number worth reporting, such as a difference."""
        self.comparison.facts[name] = value


def format_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds / 1e-3:.3g} ms"
    return f"{seconds / 1e-6:.3g} us"
