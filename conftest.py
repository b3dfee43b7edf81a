"""``--device``, for tests and benchmarks alike, and ``--kills``."""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="cpu (the default), cuda or cuda:N")
    parser.addoption(
        "--kills", type=int, default=4, help="how often tests/cli/test_kills.py kills each command"
    )


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("--device"))
