"""``--smoke``, the recorder that every benchmark writes to, and the summary."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.recorder import Comparison, Recorder
from benchmarks.timing import Pace
from hullft_ops import _C

SMOKE = Pace(seconds=0.0, min_rounds=2, max_rounds=2)
PACE = Pace(seconds=2.0, min_rounds=3, max_rounds=300)
_COMPARISONS = pytest.StashKey[list[Comparison]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--smoke",
        action="store_true",
        help="small cases, which only show that the benchmarks run",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COMPARISONS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.cases(metafunc.config.getoption("--smoke"))
        metafunc.parametrize("case", cases, ids=str)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["device"] = config.getoption("--device")
    machine_info["threads"] = torch.get_num_threads()
    machine_info["torch"] = torch.__version__
    machine_info["simd"] = _C.simd_level()
    machine_info["hullft_ops"] = _C.build_info()
    if config.getoption("--device") != "cpu":
        name = torch.cuda.get_device_name()
        machine_info["gpu"] = [f"{name}, CUDA {torch.version.cuda}"]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    comparisons = config.stash[_COMPARISONS]
    if comparisons:
        terminalreporter.section("against peers in the same run")
    for comparison in comparisons:
        terminalreporter.line(comparison.line())


@pytest.fixture
def recorder(
    benchmark: BenchmarkFixture,
    request: pytest.FixtureRequest,
    pytestconfig: pytest.Config,
    device: torch.device,
    case: object,
) -> Iterator[Recorder]:
    """Times one case. The summary and pytest-benchmark's ``extra_info`` get its result."""
    group = request.module.__name__.rpartition("bench_")[-1]
    comparison = Comparison(group, str(case))
    pace = SMOKE if pytestconfig.getoption("--smoke") else PACE
    yield Recorder(comparison, device, pace, benchmark)
    if comparison.seconds:  # timed, so its checks have passed
        pytestconfig.stash[_COMPARISONS].append(comparison)
        benchmark.extra_info.update(asdict(comparison))
