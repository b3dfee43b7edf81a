"""The recorder that times ours and its peers for a benchmark."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
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


@dataclass
class Comparison:
    """One case, all of it measured in the same run.

    Attributes:
        group: the subject of the measurement, such as "selection".
        case: the case within its group.
        seconds: median of this package.
        peers: median seconds of other code that does the same.
        ratios: how many times longer than ours each of them took, in turns with it.
        facts: other numbers that the benchmark measured.
        not_installed: libraries of peers that were not timed.
    """

    group: str
    case: str
    seconds: float = 0.0
    peers: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    not_installed: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Ours, and how many times as long each peer took; both were timed in turns for that."""
        parts = [f"{self.group} {self.case}: {format_seconds(self.seconds)}"]
        parts += [f"{ratio:.3g}x {peer}" for peer, ratio in self.ratios.items()]
        for name, value in self.facts.items():
            parts.append(f"{name} {value:.3g}")
        for library in self.not_installed:
            parts.append(f"{library} is not installed")
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

    def ours(self, call: Call, *, calls: int = 1) -> None:
        """Times the call in pytest-benchmark's pedantic mode, so its own reports show it too.

        ``calls``: how often the call does the work; its time is divided by that.
        """
        call = synchronised(call, self._device)
        self._ours = call
        if self._benchmark is None:
            self.comparison.seconds = measure(call, self.pace) / calls
            return
        self._benchmark.group = self.comparison.group
        rounds = self.pace.rounds(warm_seconds(call))
        pedantic: Callable[..., object] = self._benchmark.pedantic
        pedantic(call, rounds=rounds)
        stats: Any = self._benchmark.stats
        self.comparison.seconds = stats.stats.median / calls

    def has_library(self, name: str) -> bool:
        """Whether the library of a peer is installed. The summary names one that is not."""
        is_installed = find_spec(name) is not None
        if not is_installed:
            self.comparison.not_installed.append(name)
        return is_installed

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
