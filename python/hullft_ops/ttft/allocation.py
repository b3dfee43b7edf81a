"""What the C library does with memory that is freed."""

import ctypes
import platform

# Of glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_MMAP_MAX = -4
_NEVER = -1
_LARGEST_KEPT = 2**30


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees, from now on and whatever frees it.

    glibc gives large blocks back to the system and gets new ones page by page, which every pass of
    a model on the CPU then pays for: its gradients and logits, and its weights in bfloat16 under
    autocast, are such blocks. The process stays as large as it once was. The command ``hullft-ops``
    calls it; environment variables that set glibc's thresholds (``MALLOC_MMAP_THRESHOLD_``,
    ``MALLOC_TRIM_THRESHOLD_``) have the same effect. It does not concern other allocators, nor
    GPUs.

    Returns:
        False where the C library is not glibc: nothing has changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Before 2.35 glibc refuses a threshold of this size: then no block may be a mapping of its own.
    large = mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) or mallopt(_MMAP_MAX, 0)
    return bool(large and mallopt(_TRIM_THRESHOLD, _NEVER))
