"""These tests run on demand: ``pytest tests/cuda_sim --cuda-sim -n 2``.

They need compilers, see README.md.

With the flag they must run: a missing tool or a build that breaks is a failure, never a skip.
"""

from collections.abc import Callable, Iterator

import pytest

from cuda_sim import build
from cuda_sim.library import Library
from cuda_sim.worker import Workers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-sim", action="store_true", help="execute the CUDA kernels on the CPU"
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if config.getoption("--cuda-sim", default=False):
        return

    ours = [item for item in items if item.path.is_relative_to(build.HERE)]
    if ours:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in set(ours)]


@pytest.fixture(scope="session", autouse=True)
def toolchain() -> None:
    missing = build.missing_tools()
    if missing:
        pytest.fail(
            f"tests/cuda_sim needs {', '.join(missing)}: see tests/cuda_sim/README.md"
        )


@pytest.fixture(scope="session")
def library(toolchain: None) -> Callable[[str], Library]:
    """The library of a kind, loaded once."""
    loaded: dict[str, Library] = {}

    def of_kind(kind: str) -> Library:
        if kind not in loaded:
            loaded[kind] = Library(build.build(kind))

        return loaded[kind]

    return of_kind


@pytest.fixture(scope="session")
def workers(toolchain: None) -> Iterator[Workers]:
    """Processes for libraries that may end theirs."""
    with Workers() as started:
        yield started
