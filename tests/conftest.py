"""What the operator tests share: the device they run on, golden pools, SIMD levels, threads."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hullft_ops import _C
from on_device import cpu_kernels, elsewhere, on_device
from switches import switched

DATA = Path(__file__).parent / "data"


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Away from the CPU, its instruction sets are one, and some tests have nothing to ask."""
    if torch.device(config.getoption("--device")).type == "cpu":
        return

    repeated = [item for item in items if _simd_level_of(item) in _C.simd_levels()[1:]]
    config.hook.pytest_deselected(items=repeated)
    items[:] = [item for item in items if item not in set(repeated)]

    for item in items:
        marker = item.get_closest_marker("cpu_only")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=marker.args[0]))


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: the garbage collector need not visit it again."""
    gc.freeze()


def _simd_level_of(item: pytest.Item) -> object:
    return item.callspec.params.get("simd_level") if hasattr(item, "callspec") else None


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """With more, processes of pytest-xdist would wait for each other, and a fork for lost threads.

    The bits of a matrix product depend on the number. Ray's workers have one too.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _a_fork_may_differentiate() -> None:
    """Autograd counts devices once, at its first backward pass, and after threads for them no fork.

    Fake tensors would have a CUDA build of torch count GPUs that are not there.
    """
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session", autouse=True)
def _operators_on_device(pytestconfig: pytest.Config) -> Iterator[None]:
    device = torch.device(pytestconfig.getoption("--device"))
    if pytestconfig.getoption("--mirrored"):
        run = on_device(torch.device("cpu"), cpu_kernels())
    elif device.type == "cpu":
        yield
        return
    else:
        run = on_device(device)

    with elsewhere(run):
        yield


@pytest.fixture
def float32_tolerance(device: torch.device) -> float:
    """Of weights from pools narrower than float64: the state is float64 on the CPU alone."""
    return 1e-6 if device.type == "cpu" else 2e-5


@pytest.fixture
def float32_excess(device: torch.device) -> float:
    """Of a squared residual above its minimum, relative to the largest squared norm. Emulated
    kernels have 5e-7."""
    return 1e-12 if device.type == "cpu" else 2e-6


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Eight pools of real text embeddings with the float64 answers: see tests/data/README.md."""
    with np.load(DATA / "pools_k200_d384.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(params=_C.simd_levels())
def simd_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that can run here, one at a time."""
    yield from switched(_C.simd_level, _C.use_simd_level, request.param)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
