"""``--device``, for tests and benchmarks alike, and what the tests alone have."""

from time import monotonic

import pytest
import torch

_START = monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="cpu (the default), cuda or cuda:N"
    )
    parser.addoption(
        "--seconds",
        type=float,
        default=float("inf"),
        help="skip what would start later than so many seconds after the start",
    )
    parser.addoption(
        "--mirrored",
        action="store_true",
        help="the CPU's kernels on copies of the tensors, as --device has a GPU's: a rehearsal",
    )
    parser.addoption(
        "--kills",
        type=int,
        default=4,
        help="how often tests kill each command, and interrupt an adaptation twice",
    )


def _seconds_left(config: pytest.Config) -> float:
    left: float = config.getoption("--seconds") - (monotonic() - _START)
    return left


def pytest_runtest_setup(item: pytest.Item) -> None:
    if _seconds_left(item.config) < 0:
        pytest.skip("no time was left")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """End the process after a test that has left CUDA unusable, or all that follow would fail."""
    if call.excinfo is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        item.session.shouldstop = f"CUDA is unusable from here on: {error}"


@pytest.fixture
def seconds_left(pytestconfig: pytest.Config) -> float:
    """Of ``--seconds``, at the start of a test."""
    return _seconds_left(pytestconfig)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("--device"))
