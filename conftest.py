"""``--device``, for tests and benchmarks alike, and what the tests alone have."""

from pathlib import Path

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
        "--findings",
        type=Path,
        help="a file to which each report of a test goes, as benchmarks/gpu_check.py reads it",
    )
    parser.addoption(
        "--kills",
        type=int,
        default=4,
        help="how often tests kill each command, and interrupt an adaptation twice",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--findings") is not None:
        from reports import Reports

        config.pluginmanager.register(Reports(config))


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("--device"))
