"""What the C library does with memory that is freed."""

import ctypes
import mmap
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Of glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_MMAP_MAX = -4
_NEVER = -1
_LARGEST_KEPT = 2**30

# Got at once of the address space that is set aside: below the threshold, so that it is heap.
_BLOCK = 2**29
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_NO_MORE_THAN_THERE_IS = "2"


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees, from now on and whatever frees it.

    glibc gives large blocks back to the system and gets new ones page by page, which every pass of
    a model on the CPU then pays for: its gradients and logits, and its weights in bfloat16 under
    autocast, are such blocks. The process stays as large as it once was. The command ``hullft-ops``
    calls it; environment variables that set glibc's thresholds (``MALLOC_MMAP_THRESHOLD_``,
    ``MALLOC_TRIM_THRESHOLD_``) have the same effect. It does not concern other allocators, nor
    GPUs.

    It also asks for huge pages for what the process gets from now on, where the system gives those
    on request (``/sys/kernel/mm/transparent_hugepage/enabled`` says ``madvise``): copies, casts and
    optimizer steps then wait less for addresses to be looked up. For that it sets address space
    aside for half of the machine's memory, unless the system counts that as memory in use.

    Returns:
        False where the C library is not glibc: nothing has changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # Before 2.35 glibc refuses a threshold of this size: then no block may be a mapping of its own.
    large = libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) or libc.mallopt(_MMAP_MAX, 0)
    kept = bool(large and libc.mallopt(_TRIM_THRESHOLD, _NEVER))
    if kept and _OVERCOMMIT.exists() and _OVERCOMMIT.read_text().strip() != _NO_MORE_THAN_THERE_IS:
        _ask_for_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2)
    return kept


def _ask_for_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """For the heap to come: got, advised and freed, it is what malloc gives out next."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    blocks: list[int] = []
    while len(blocks) * _BLOCK < size:
        block = libc.malloc(_BLOCK)
        if block is None:
            break
        blocks.append(block)
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        if libc.madvise(start, block + _BLOCK - start, mmap.MADV_HUGEPAGE) != 0:
            break
    for block in reversed(blocks):
        libc.free(block)


# Of a plain RuntimeError: what torch says on the CPU, an operator in compiled code, and CUDA
# when a launch finds no memory.
_TEXTS = ("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory")


@contextmanager
def out_of_memory_explained(advice: str) -> Iterator[None]:
    """Raise ``advice`` in place of what torch says when an allocation fails, on any device.

    Raises:
        torch.OutOfMemoryError: an allocation in the body failed.
    """
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
