"""What the operator tests share: golden pools, random problems, SIMD levels."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hullft_ops import _C

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Eight pools of real text embeddings with the float64 answers: see tests/data/README.md."""
    with np.load(DATA / "pools_k200_d384.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(params=_C.simd_levels())
def simd_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that can run here, one at a time."""
    before = _C.simd_level()
    _C.use_simd_level(request.param)
    yield request.param
    _C.use_simd_level(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
