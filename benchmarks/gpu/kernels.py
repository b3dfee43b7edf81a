"""What a call costs: the device, kernel by kernel as torch's profiler says, and the host."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.tasks import wait_for
from benchmarks.timing import sample

# Among the kernels, with the time that it takes the host.
GRAPH_LAUNCH = "cudaGraphLaunch"
_ATTENTION = re.compile("attention|flash|fmha|sdpa")


@dataclass
class Kernel:
    """How often a kernel ran, and the seconds of all runs."""

    count: int = 0
    seconds: float = 0.0


def launched(
    call: Callable[[], object],
    device: torch.device,
    times: int = 1,
    trace: Path | None = None,
) -> dict[str, Kernel]:
    """The kernels of some calls by their short names; on the CPU, torch's operators.

    A trace for chrome://tracing goes to ``trace``, compressed if the name ends with ``.gz``.
    """
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU]
    if on_cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(times):
            call()
        wait_for(device)
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    kernels: dict[str, Kernel] = defaultdict(Kernel)
    for event in profiler.key_averages():
        is_kernel = event.device_type.name == "CUDA" and not event.is_user_annotation
        if is_kernel or not on_cuda or event.key == GRAPH_LAUNCH:
            kernel = kernels[short_name(event.key)]
            kernel.count += event.count
            on_device = event.self_device_time_total
            kernel.seconds += (on_device or event.self_cpu_time_total) / 1e6
    return kernels


def short_name(name: str) -> str:
    """``gram_kernel`` for ``void hullft::(anonymous namespace)::gram_kernel<float, 32>(...)``."""
    plain = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    found = re.match(r"(?:\w+::)*(\w+)[<(]", plain)
    return found[1] if found else name


def attention(kernels: dict[str, Kernel]) -> list[str]:
    """The names of the kernels that compute attention."""
    return sorted(name for name in kernels if _ATTENTION.search(name))


def host_seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median of how long a call keeps Python, without the device's work after it."""
    call()
    samples = []
    for _ in range(50):
        # A full queue of launches would make Python wait.
        wait_for(device)
        samples.append(sample(call))
    return median(samples)
