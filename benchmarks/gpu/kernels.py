"""Which kernels a call launches, and how long each runs, as torch's profiler says."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

_CALLS_BEFORE = 5


class Launch(NamedTuple):
    """A launch of a kernel, in microseconds of one clock."""

    kernel: str
    start: float
    end: float


def launches(
    call: Callable[[], object], device: torch.device, calls: int
) -> list[Launch]:
    """The kernels that some calls launch, in the order of their starts; none on the CPU."""
    if device.type != "cuda":
        return []
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize(device)
    found = [
        Launch(short_name(event.name), event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    return sorted(found, key=lambda launch: launch.start)


def microseconds_of_kernels(
    call: Callable[[], object], device: torch.device, calls: int
) -> dict[str, float]:
    """Microseconds a call, by kernel.

    Raises:
        ValueError: the profiler has lost launches of the calls that count.
    """
    found = launches(call, device, _CALLS_BEFORE + calls)
    return mean_of_last(found, calls, _CALLS_BEFORE + calls)


def mean_of_last(found: list[Launch], calls: int, made: int) -> dict[str, float]:
    """Of the last ``calls`` of ``made`` equal calls.

    A kernel that starts while the one before it runs counts from that one's end.
    """
    per_call = -(-len(found) // made)
    counted = found[len(found) - calls * per_call :]
    names = [launch.kernel for launch in counted]
    if names != names[:per_call] * calls:
        raise ValueError(f"the profiler lost some of the launches of {made} calls")
    micros: dict[str, float] = defaultdict(float)
    end = 0.0
    for launch in counted:
        micros[launch.kernel] += max(0.0, launch.end - max(launch.start, end)) / calls
        end = max(end, launch.end)
    return dict(micros)


def short_name(name: str) -> str:
    """``gram_kernel`` for ``void hullft::(anonymous namespace)::gram_kernel<float, 32>(...)``."""
    plain = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    match = re.match(r"(?:\w+::)*(\w+)[<(]", plain)
    return match[1] if match else name
