"""Peak memory of a call."""

import ctypes
import gc
from pathlib import Path

import torch

from benchmarks.timing import Call

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_bytes(call: Call, device: torch.device) -> int:
    """Peak bytes of the device's memory during the call, including what was in use before.

    On the CPU it is this process's resident memory, as Linux counts it (glibc's allocator).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    # Freed memory that the process still holds would hide as much of the call's memory.
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR_REFS.write_text(_RESET_PEAK)
    call()
    line = next(s for s in _STATUS.read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def added_bytes(call: Call, device: torch.device) -> int:
    """Peak bytes during the call, beyond those in use before."""
    before = peak_bytes(lambda: None, device)
    return peak_bytes(call, device) - before
