"""Keeping freed memory, and explaining when none is left."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
_LARGEST_KEPT = 2**30
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
    libc = _glibc()
    if libc is None:
        return False
    # Before 2.35 glibc refuses a threshold of this size. Then forbid separate mappings altogether.
    large = libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) or libc.mallopt(_MMAP_MAX, 0)
    return bool(large and libc.mallopt(_TRIM_THRESHOLD, _NEVER))


def return_freed_memory() -> None:
    """Give the system what this process has freed, also between blocks that stay, if it is glibc's.

    Every prompt leaves other gaps: a process with a model of 0.5 B grew from 9 to 15 GB over 36
    prompts with steps, and from 3 to 8 GB over six without.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The process's C library; None if it is another than glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


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
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in _TEXTS)
