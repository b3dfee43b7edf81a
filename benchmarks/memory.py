"""Peak memory of a call."""

import gc
from pathlib import Path

import torch

from benchmarks.timing import Call

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_bytes(call: Call, device: torch.device) -> int:
    """Bytes of the device's memory in use at the worst moment of the call, the rest included.

    On the CPU it is this process's resident memory, as Linux counts it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    _CLEAR_REFS.write_text(_RESET_PEAK)
    call()
    line = next(s for s in _STATUS.read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
