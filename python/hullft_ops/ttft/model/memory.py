"""Keeping freed memory in the process, asking how much is left, and explaining when none is."""

import ctypes
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
_LARGEST_KEPT = 2**30

_MEMORY = Path("/proc/meminfo")
# A container's own limit and use.
_CONTAINER = Path("/sys/fs/cgroup")
# Texts of a plain RuntimeError: from torch on the CPU, from an operator in compiled code, and from
# CUDA when a launch finds no memory.
_TEXTS = ("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory")


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees, from now on. The commands do so.

    glibc returns large blocks to the system and gets new ones page by page. Every pass of a model
    on the CPU pays for that. With this call the process stays as large as it once was. The
    environment variables ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_`` have the same
    effect. Returns False, and changes nothing, if the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # Before 2.35 glibc refuses a threshold of this size. Then forbid separate mappings altogether.
    large = libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) or libc.mallopt(_MMAP_MAX, 0)
    return bool(large and libc.mallopt(_TRIM_THRESHOLD, _NEVER))


def available_memory() -> int | None:
    """The bytes of CPU memory that this process could still get; None where nothing says so."""
    available = _number_after("MemAvailable:", _MEMORY)
    if available is None:
        return None
    free = available * 1024
    limit = _number_after("", _CONTAINER / "memory.max")
    used = _number_after("anon ", _CONTAINER / "memory.stat")
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def _number_after(label: str, file: Path) -> int | None:
    """The number on the file's line that begins with the label."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    words = next(
        (line.removeprefix(label).split() for line in lines if line.startswith(label)),
        [],
    )
    return int(words[0]) if words and words[0].isdigit() else None


@contextmanager
def out_of_memory_explained(advice: str) -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` with ``advice`` if an allocation fails, on any device."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(f"{advice} ({error})") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in _TEXTS
    )


def training_advice(
    texts: Sequence[Sequence[int]],
    max_length: int,
    order: str,
    n_select: int,
    context: int,
) -> str:
    """What to do if a finetuner with these settings runs out of memory on ``texts``."""
    longest = max(map(len, texts), default=0)
    lower = f"max_length (it is {max_length})" + (
        f", context (it is {context})" if context else ""
    )
    advice = (
        f"TestTimeFinetuner: out of memory, adapting on texts of up to {longest} tokens; the "
        f"model has been restored. Lower {lower}, or train less of the model: PEFT adapters, or "
        'requires_grad_(False) for some of it; dtype="bfloat16" makes activations smaller'
    )
    if order == "interleaved":
        fewer = f"a lower n_select (it is {n_select}) fewer of them"
        advice += f'; order "grouped" keeps no gradients, {fewer}'
    return advice
