"""``--device``, for tests and benchmarks alike, and what the tests alone have."""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="cpu (the default), cuda or cuda:N"
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


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("--device"))
