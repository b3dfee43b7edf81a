"""Stages of a device are timed in that device's stream; no GPU is needed to see which it is."""

from dataclasses import dataclass, field
from itertools import count

import pytest
import torch

from hullft_ops.ttft.training.steps import StageClock


@dataclass
class FakeStream:
    device: torch.device
    clock: count = field(default_factory=lambda: count(0, 1000))


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: FakeStream | None = None) -> None:
        self.stream = stream
        self.time = next(stream.clock)

    def elapsed_time(self, end: "FakeEvent") -> float:
        """In milliseconds."""
        assert self.stream is end.stream
        return end.time - self.time


def test_events_lie_in_the_stream_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = {i: FakeStream(torch.device("cuda", i)) for i in range(2)}
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: streams[device.index]
    )
    clock = StageClock(torch.device("cuda", 1))
    with clock.of("outer"), clock.of("inner"):
        pass
    assert (clock.seconds("outer"), clock.seconds("inner")) == (2.0, 1.0)
    assert next(streams[1].clock) == 4000
    assert next(streams[0].clock) == 0


def test_other_devices_read_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1.0, 2.0, 4.0, 8.0])
    monkeypatch.setattr(
        "hullft_ops.ttft.training.steps.perf_counter", lambda: next(readings)
    )
    clock = StageClock(torch.device("cpu"))
    with clock.of("outer"), clock.of("inner"):
        pass
    assert (clock.seconds("outer"), clock.seconds("inner")) == (5.0, 2.0)
