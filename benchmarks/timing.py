"""The only timer: medians of seconds, and the ratio of two calls that take turns."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

Call = Callable[[], object]

# One round of so long a call is enough.
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


def synchronised(call: Call, device: torch.device) -> Call:
    """A call that returns only when the device is done."""
    if device.type != "cuda":
        return call

    def waited() -> object:
        result = call()
        torch.cuda.synchronize(device)
        return result

    return waited


def sample(call: Call) -> float:
    """Seconds of one call."""
    start = perf_counter()
    call()
    return perf_counter() - start


def warm_seconds(call: Call) -> float:
    """Seconds of the second call. The first one pays for pages, caches and threads."""
    call()
    return sample(call)


def measure(call: Call, pace: Pace) -> float:
    """The median of a call's seconds, after a warm-up."""
    samples = [warm_seconds(call)]
    for _ in range(pace.rounds(samples[0]) - 1):
        samples.append(sample(call))
    return median(samples)


def measure_in_turns(call: Call, peer: Call, pace: Pace) -> tuple[float, float]:
    """The median of a peer's seconds, and how many times longer it takes than ``call``.

    The two take turns of some calls each, and the second number is the median over the turns. If
    the machine is slow for a while, both are slow, and the ratio cancels it.
    """
    call_seconds, peer_seconds = warm_seconds(call), warm_seconds(peer)
    turn = min(_TURN_SECONDS, pace.seconds)
    call_rounds = _calls_within(turn, call_seconds)
    peer_rounds = _calls_within(turn, peer_seconds)
    samples: list[float] = []
    ratios: list[float] = []
    turn_seconds = call_rounds * call_seconds + peer_rounds * peer_seconds
    for _ in range(pace.rounds(turn_seconds)):
        ours = [sample(call) for _ in range(call_rounds)]
        theirs = [sample(peer) for _ in range(peer_rounds)]
        samples += theirs
        ratios.append(median(theirs) / median(ours))
    return median(samples), median(ratios)


def _calls_within(turn: float, call_seconds: float) -> int:
    return max(1, int(turn / max(call_seconds, 1e-9)))
