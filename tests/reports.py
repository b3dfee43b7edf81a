"""A plugin of pytest: each test is a task of the step ``tests``, written when its report comes.

A process that CUDA has left unusable ends in the test that did it. pytest-xdist starts another;
without it the GPU check does, and the tests that were started before do not run again.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.gpu.findings import Findings, started
from benchmarks.gpu.step import STICKY
from benchmarks.gpu.tasks import is_usable


class Reports:
    def __init__(self, config: pytest.Config) -> None:
        self._device = torch.device(config.getoption("--device"))
        # A process of pytest-xdist only runs tests: the first process gets their reports.
        self._writes = not hasattr(config, "workerinput")
        self._runs = not config.getoption("numprocesses", None) or not self._writes
        path: Path = config.getoption("--findings")
        self._before = set(started(path))
        self._findings = Findings(path)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._writes:
            items[:] = [item for item in items if item.nodeid not in self._before]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if self._writes and report.failed and report.nodeid not in self._before:
            self._before.add(report.nodeid)  # each process of pytest-xdist reports it
            self._findings.start(report.nodeid)
            self._findings.end(_reason(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self._writes:
            self._findings.start(nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._findings.task = report.nodeid
        if self._writes and report.failed:
            self._findings.end(_reason(report))
        elif self._writes and report.skipped:
            self._findings.end(skipped=_reason(report))
        elif self._writes and report.when == "call":
            self._findings.end()
        if self._runs and report.failed and not is_usable(self._device):
            print(report.longreprtext, file=sys.__stderr__, flush=True)
            os._exit(STICKY)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Of a skip, or the line of the report that says what failed."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[-1])
    lines = report.longreprtext.splitlines() or ["no reason"]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (marked or lines[-1:])[0]
