"""The benchmarks' own parts, and one run of the small ones at sizes that prove nothing."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from benchmarks import (
    compare,
    report,
    timing,
)
from benchmarks.recorder import Comparison
from benchmarks.timing import Pace, measure, measure_in_turns

from forked import forked, status_of

ROOT = Path(__file__).parents[2]


class SlowingMachine:
    """A clock, and calls that take ten times as long from its first second on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)

    def call(self, seconds: float) -> Callable[[], None]:
        def take() -> None:
            is_slow = self.now >= 1
            self.now += 10 * seconds if is_slow else seconds

        return take


def test_calls_in_turns_share_what_slows_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = SlowingMachine(monkeypatch)
    ours = machine.call(0.05)
    peer = machine.call(0.1)
    pace = Pace(seconds=0.5, min_rounds=9, max_rounds=100)

    seconds_of_peer = measure(peer, pace)
    seconds_of_ours = measure(ours, pace)

    assert seconds_of_peer / seconds_of_ours < 20 / 9

    machine.now = 0.0
    seconds, ratio = measure_in_turns(ours, peer, pace)

    assert ratio == pytest.approx(2)
    assert seconds == pytest.approx(1.0)


def test_a_small_run_measures_every_operator_and_makes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest-benchmark measures nothing in a process of pytest-xdist, nor in one started there.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.chdir(ROOT)
    output = tmp_path / "run.json"
    arguments = ["benchmarks", "-q", "--smoke", "-p", "no:cacheprovider"]
    arguments += [f"--benchmark-json={output}"]
    # A fork lacks the thread that pytest's faulthandler would wait for.
    arguments += ["-p", "no:faulthandler", "-o", "addopts=--import-mode=importlib"]

    def measure() -> None:
        assert pytest.main(arguments) == 0

    assert status_of(forked(measure, seconds=300)) == 0

    run = json.loads(output.read_text())
    comparisons = [Comparison(**one["extra_info"]) for one in run["benchmarks"]]
    groups = {path.stem.removeprefix("bench_") for path in ROOT.glob("*/bench_*.py")}

    assert {one.group for one in comparisons if one.peers} == groups
    assert all(one.seconds > 0 for one in comparisons)

    assert run["machine_info"]["threads"] == 1

    page = report.page(run)

    assert all(f"| {one.case} | " in page for one in comparisons)

    with pytest.raises(ValueError, match="no case was measured"):
        report.page(run | {"benchmarks": [{"extra_info": {}}]})


def run_of(threads: int = 2, peer: float = 1.0, **seconds: float) -> dict[str, Any]:
    """What pytest-benchmark writes of cases that take these seconds."""
    cases = [
        asdict(
            Comparison("selection", case, ours, {"a peer": peer}, {"a peer": 1 / ours})
        )
        for case, ours in seconds.items()
    ]
    benchmarks = [{"extra_info": case} for case in cases]
    return {"machine_info": {"threads": threads}, "benchmarks": benchmarks}


def test_a_comparison_has_every_case_before_and_after() -> None:
    before = run_of(slower=0.1, same=2.0, gone=1.0)
    after = run_of(slower=0.2, same=2.0, new=1.0)
    _, *rows, _ = compare.lines(before, after)

    assert [row.split() for row in rows] == [
        ["selection", "slower", "100", "ms", "200", "ms", "2.000x", "1.000x"],
        ["selection", "same", "2", "s", "2", "s", "1.000x", "1.000x"],
        ["selection", "gone:", "only", "before"],
        ["selection", "new:", "only", "after"],
    ]

    _, *rows, _ = compare.lines(before, run_of(same=2.0, peer=0.96))

    assert rows[0].endswith("0.960x !")

    for other, message in (
        (run_of(threads=1, same=2.0), "threads is 2 before, 1 after"),
        (run_of(new=1.0), "no case in common"),
    ):
        with pytest.raises(ValueError, match=message):
            compare.lines(before, other)
