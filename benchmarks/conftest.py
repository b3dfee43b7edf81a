"""``--grid``, the recorder that every benchmark writes to, and the summary."""

from collections.abc import Generator, Iterator
from dataclasses import asdict

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from threadpoolctl import threadpool_limits

from benchmarks.recorder import Recorder
from benchmarks.timing import Comparison, Pace

# For ours and every peer, including NumPy's BLAS.
THREADS = 2
PACES = {
    "smoke": Pace(seconds=0.0, min_rounds=2, max_rounds=2),
    "quick": Pace(seconds=2.0, min_rounds=3, max_rounds=300),
    "full": Pace(seconds=2.0, min_rounds=5, max_rounds=300),
}
_COMPARISONS = pytest.StashKey[list[Comparison]]()
_PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--grid",
        choices=tuple(PACES),
        default="full",
        help="smoke: that it runs; quick: the headline cases; full: every axis (the default)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COMPARISONS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.cases(metafunc.config.getoption("--grid"))
        metafunc.parametrize("case", cases, ids=str)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    comparisons = config.stash[_COMPARISONS]
    if comparisons:
        terminalreporter.section("against peers in the same run")
    for comparison in comparisons:
        terminalreporter.line(comparison.line())


@pytest.fixture(scope="session", autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with threadpool_limits(THREADS):
        yield
    torch.set_num_threads(before)


@pytest.fixture
def recorder(
    benchmark: BenchmarkFixture,
    request: pytest.FixtureRequest,
    pytestconfig: pytest.Config,
    device: torch.device,
    case: object,
) -> Iterator[Recorder]:
    """Times one case. The summary and pytest-benchmark's ``extra_info`` get its result.

    A case that fails appears in neither: some checks run after the timing.
    """
    group = request.module.__name__.rpartition("bench_")[-1]
    pace = PACES[pytestconfig.getoption("--grid")]
    comparison = Comparison(group, str(case), asdict(case))  # type: ignore[call-overload]
    yield Recorder(benchmark, device, pace, comparison)
    if request.node.stash.get(_PASSED, False) and comparison.ours is not None:
        pytestconfig.stash[_COMPARISONS].append(comparison)
        benchmark.extra_info.update(asdict(comparison))
