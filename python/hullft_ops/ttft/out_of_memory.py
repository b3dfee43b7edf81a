"""Saying what to lower when memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
