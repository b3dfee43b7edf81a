"""What the host side says of devices, drivers, failed calls and memory, on a made-up runtime."""

import ctypes
import shutil
from pathlib import Path

import pytest

from cuda_sim import build

INVALID_DEVICE = 101  # cudaErrorInvalidDevice


@pytest.fixture(scope="module")
def host_side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.build_host(tmp_path_factory.mktemp("host"))


@pytest.fixture
def host(host_side: Path, tmp_path: Path) -> ctypes.CDLL:
    """A process asks for a device once, so every test has a library of its own."""
    library = ctypes.CDLL(shutil.copy(host_side, tmp_path))
    for name in ("unusable", "refused", "failed", "no_memory"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def test_a_usable_device_is_asked_once(host: ctypes.CDLL) -> None:
    for major, minor in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0)):
        host.set_machine(host.required_driver() + 20, major, minor, 0)
        assert host.unusable(0) == b""

    for device in (3, 3, 70, 70):
        assert host.refused(device) is None

    assert host.queries() == 2 + 2 + 4  # past the 64th no device is remembered

    host.set_machine(host.required_driver(), 7, 5, 0)

    assert host.refused(3) is None
    assert host.refused(4) is not None


def test_an_old_device_is_named(host: ctypes.CDLL) -> None:
    host.set_machine(host.required_driver(), 7, 5, 0)
    message = "cuda:1 has compute capability 7.5, the kernels want 8.0 or higher"

    assert host.unusable(1).decode() == message

    for _ in range(2):
        assert host.refused(1).decode() == f"fw_select: CUDA error: {message}"


def test_an_old_driver_is_named(host: ctypes.CDLL) -> None:
    old = host.required_driver() - 1000 + 80
    host.set_machine(old, 9, 0, 0)
    message = (
        f"the driver is for CUDA {version(old)}, this build wants one for CUDA "
        f"{version(host.required_driver())} or later"
    )

    assert host.unusable(0).decode() == message
    assert host.refused(0).decode() == f"fw_select: CUDA error: {message}"

    host.set_machine(0, 9, 0, 0)

    assert host.unusable(0) == b"there is no CUDA driver"


def test_a_failed_call_leaves_no_error_behind(host: ctypes.CDLL) -> None:
    assert host.failed(0) is None
    assert (
        host.failed(INVALID_DEVICE) == b"fw_select: CUDA error: invalid device ordinal"
    )
    assert host.last_error() == 0

    host.set_machine(host.required_driver(), 9, 0, INVALID_DEVICE)

    assert host.unusable(9) == b"invalid device ordinal"
    assert host.last_error() == 0


def test_a_lack_of_memory_is_told_from_other_errors(host: ctypes.CDLL) -> None:
    start = "hullft_ops: CUDA out of memory: no workspace of 4096 bytes on cuda:1"

    assert host.no_memory(1, 1, b"").decode() == start

    full = b"CUDA out of memory. Tried to allocate 4.00 KiB.\nand a trace"
    message = f"{start}: CUDA out of memory. Tried to allocate 4.00 KiB."

    assert host.no_memory(1, 1, full).decode() == message

    other = "CUDA error: an illegal memory access was encountered"
    message = f"hullft_ops: torch makes no workspace of 4096 bytes on cuda:0: {other}"

    assert host.no_memory(1, 0, other.encode()).decode() == message
    assert "out of memory" not in host.no_memory(0, 0, b"").decode()
