"""The only timer, and the results of one benchmark."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch

Call = Callable[[], object]

# A call that takes this long has no start-up cost that matters, so it needs no warm-up run.
LONG_SECONDS = 30.0

# Length of a turn. It is long compared with what one side leaves behind for the other: caches, and
# threads that spin for up to some 20 ms. It is short compared with the seconds for which a shared
# machine is slow at a time.
_TURN_SECONDS = 0.1


@dataclass(frozen=True)
class Pace:
    """How long to measure: rounds that fill ``seconds``, within the two bounds."""

    seconds: float
    min_rounds: int
    max_rounds: int

    def rounds(self, call_seconds: float) -> int:
        """Rounds for a call of this length; 1 for a long one."""
        if call_seconds >= LONG_SECONDS:
            return 1
        fitting = int(self.seconds / max(call_seconds, 1e-9))
        return min(max(fitting, self.min_rounds), self.max_rounds)


@dataclass(frozen=True)
class Timing:
    """The seconds of a call: the median over ``rounds``, and the quartiles around it."""

    seconds: float
    lower: float
    upper: float
    rounds: int

    @classmethod
    def of(cls, samples: list[float], scale: float = 1.0) -> "Timing":
        """From seconds of single calls, each standing for ``scale`` times the work."""
        scaled = [scale * sample for sample in samples]
        spread = quantiles(scaled, n=4) if len(scaled) > 1 else [scaled[0]] * 3
        return cls(median(scaled), spread[0], spread[2], len(scaled))


def synchronised(call: Call, device: torch.device) -> Call:
    """A call that returns only when the device is done."""
    if device.type != "cuda":
        return call

    def waited() -> object:
        result = call()
        torch.cuda.synchronize(device)
        return result

    return waited


def sample(call: Call, setup: Call | None = None) -> float:
    """Seconds of one call, without ``setup``."""
    if setup is not None:
        setup()
    start = perf_counter()
    call()
    return perf_counter() - start


def warmed_up(call: Call, setup: Call | None = None) -> tuple[list[float], float]:
    """Samples that already count (one, if the call is long), and how long a call takes.

    The first call pays for pages, caches and threads. The second shows how long a call takes.
    """
    first = sample(call, setup)
    if first >= LONG_SECONDS:
        return [first], first
    return [], sample(call, setup)


def measure(
    call: Call, pace: Pace, *, setup: Call | None = None, scale: float = 1.0
) -> Timing:
    """Times a call after a warm-up. ``setup`` runs before each call, untimed.

    ``scale`` multiplies the time of a call. A peer that takes queries one by one is timed on only a
    few of a large batch.
    """
    samples, seconds = warmed_up(call, setup)
    rounds = pace.rounds(seconds) - len(samples)
    return Timing.of(samples + [sample(call, setup) for _ in range(rounds)], scale)


def measure_in_turns(
    call: Call, peer: Call, pace: Pace, *, scale: float = 1.0
) -> tuple[Timing, float]:
    """Times a peer, and how many times longer it takes than ``call``.

    The two take turns of some calls each, and the second number is the median over the turns. If
    the machine is slow for a while, both are slow, and the ratio cancels it. ``scale`` is as in
    `measure`, for the peer.
    """
    counted, peer_seconds = warmed_up(peer)
    _, call_seconds = warmed_up(call)
    turn = min(_TURN_SECONDS, pace.seconds)
    call_rounds, peer_rounds = (
        _calls_within(turn, call_seconds),
        _calls_within(turn, peer_seconds),
    )
    samples: list[float] = []
    ratios: list[float] = []
    for _ in range(
        pace.rounds(call_rounds * call_seconds + peer_rounds * peer_seconds)
    ):
        ours = [sample(call) for _ in range(call_rounds)]
        theirs = counted or [sample(peer) for _ in range(peer_rounds)]
        samples += theirs
        ratios.append(scale * median(theirs) / median(ours))
    return Timing.of(samples, scale), median(ratios)


def _calls_within(turn: float, call_seconds: float) -> int:
    return max(1, int(turn / max(call_seconds, 1e-9)))


@dataclass
class Comparison:
    """One case: ours, its peers and a sweep of the same bytes, all measured in the same run.

    Attributes:
        group: the subject of the measurement, such as "selection".
        name: the case within its group.
        case: its parameters.
        ours: time of this package.
        peers: times of other code that does the same.
        bytes_moved: bytes that must cross memory at least once.
        roofline: time of a plain sweep of just those bytes, see `Recorder.sweep`.
        ratios: how many times longer than ours a peer took, in turns with it.
        times_roofline: how many times longer ours took than the sweep, in turns with it.
        facts: other numbers that the benchmark measured.
    """

    group: str
    name: str
    case: dict[str, Any]
    ours: Timing | None = None
    peers: dict[str, Timing] = field(default_factory=dict)
    bytes_moved: int | None = None
    roofline: Timing | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    times_roofline: float | None = None
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Median seconds of ours.

        Raises:
            RuntimeError: ours has not been timed.
        """
        if self.ours is None:
            raise RuntimeError(
                f"Comparison: {self.group} {self.name} has no timing of ours"
            )
        return self.ours.seconds

    def ratio(self, peer: str) -> float:
        """How many times longer the peer takes: from turns, or else from the two times."""
        if peer in self.ratios:
            return self.ratios[peer]
        return self.peers[peer].seconds / self.seconds

    @property
    def gigabytes_per_second(self) -> float | None:
        return (
            None if self.bytes_moved is None else self.bytes_moved / self.seconds / 1e9
        )

    def line(self) -> str:
        """The whole comparison on one line of text."""
        parts = [f"{self.group} {self.name}: {format_seconds(self.seconds)}"]
        parts += [
            f"{self.ratio(peer):.3g}x {peer} ({format_seconds(timing.seconds)})"
            for peer, timing in self.peers.items()
        ]
        if self.gigabytes_per_second is not None:
            parts.append(f"{self.gigabytes_per_second:.1f} GB/s")
        if self.times_roofline is not None:
            parts.append(f"{self.times_roofline:.2f} times the sweep")
        parts += [f"{name} {value:.3g}" for name, value in self.facts.items()]
        return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
