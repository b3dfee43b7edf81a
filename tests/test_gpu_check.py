"""The check that runs on a GPU: its steps rehearsed here, and what becomes of failing ones."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks import gpu_check
from benchmarks.gpu import operators
from benchmarks.gpu.__main__ import main as gpu_step
from benchmarks.gpu.replay import goal_share
from benchmarks.gpu_check import Step

from processes import is_running


@pytest.mark.long
def test_a_dry_run_rehearses_every_step_but_the_launches(tmp_path: Path) -> None:
    output = tmp_path / "new" / "gpu.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--dry-run", "--output", str(output)]
    done = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True, check=False)
    found = json.loads(output.read_text(encoding="utf-8"))
    became = {step["name"]: step["status"] for step in found["steps"]}
    printed = ["build", *(f"compute-sanitizer {t}" for t in ("memcheck", "racecheck", "initcheck"))]
    assert became == {
        name: gpu_check.NOT_RUN if name in printed else gpu_check.REHEARSED for name in became
    }, done.stdout
    assert done.returncode == 3
    assert all(f"== {name}:" in done.stdout for name in printed)
    assert found["dry_run"] is True
    assert found["commit"]
    results = {step["name"]: step.get("results") for step in found["steps"]}
    assert results["tests"]["tests"] > results["tests"]["failures"] == 0
    checked, captured = results["operators"]["checked"], results["graphs"]["captured"]
    assert len(checked) == 33
    assert captured == [*checked, "ReplayAdam, capturable"]
    for name in ("selection", "replay", "ttft"):
        assert all(c["ours"]["seconds"] > 0 for c in results[name]["comparisons"])
        assert not results[name].get("goals")
    assert {"padded loop", "torch loop"} == results["ttft"]["comparisons"][0]["peers"].keys()
    page = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "| selection | rehearsed on the CPU |" in page
    assert sorted(path.name for path in output.parent.iterdir()) == ["gpu.json", "gpu.md"]


@pytest.mark.parametrize(
    ("repeats", "wanted"), [(1, 0.85), (4, 0.85), (8, 0.85 * 0.85), (16, 0.85 * 0.425)]
)
def test_the_bandwidth_asked_of_replay_is_what_the_arithmetic_leaves(
    repeats: int, wanted: float
) -> None:
    """On an H100, as csrc/cuda/README.md has it."""
    assert abs(goal_share(repeats, 3.35e12, 132 * 128 * 1.755e9) - wanted) < 0.001


def test_the_budgets_fit_the_time() -> None:
    steps = gpu_check.plan("cuda:0")
    assert sum(step.seconds for step in steps) <= gpu_check.BUDGET_SECONDS < 9 * 60


def test_every_operator_test_is_among_the_tests() -> None:
    named = {Path(path).stem for path in gpu_check.operator_tests()}
    assert {"test_fw_select", "test_adam_replay", "test_registration"} <= named
    assert "test_packaging" not in named


def python(code: str, **options: object) -> Step:
    command = [sys.executable, "-c", code, "{output}"]
    return Step("a step", 20, command, **{"read": gpu_check.read_json, **options})


WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{}')"


@pytest.mark.parametrize(
    ("step", "status", "why"),
    [
        (python(WRITE.format('{{"a": 1}}')), gpu_check.PASSED, ""),
        (python(WRITE.format("no")), gpu_check.FAILED, "its results cannot be used: Expecting"),
        (python("pass"), gpu_check.FAILED, "it wrote no results"),
        (python("print('oh'); raise SystemExit(7)"), gpu_check.FAILED, "exit status 7"),
        (python("import os; os.abort()"), gpu_check.FAILED, "exit status -6"),
        (python("pass", read=gpu_check.read_nothing), gpu_check.PASSED, ""),
        (python("pass", modules=("json", "no_such")), gpu_check.NOT_RUN, "needs no_such"),
        (python("pass", tools=("no-such-tool",)), gpu_check.NOT_RUN, "needs no-such-tool"),
        (Step("gone", 20, ["no-such"], gpu_check.read_nothing), gpu_check.FAILED, "No such file"),
    ],
)
def test_what_becomes_of_a_step(step: Step, status: str, why: str) -> None:
    record = gpu_check.run_step(step, step.seconds, dry_run=False)
    assert (record["status"], why in record["why"]) == (status, True), record
    assert status != gpu_check.PASSED or record["why"] == ""
    json.dumps(record)


def test_a_step_that_does_not_end_is_stopped() -> None:
    # A shell, which has said so long before the time is over, however busy the machine.
    shell = "sleep 60 & echo on $!; wait"
    step = Step("endless", 20, ["sh", "-c", shell], gpu_check.read_nothing)
    record = gpu_check.run_step(step, 1, dry_run=False)
    assert (record["status"], record["why"]) == (gpu_check.FAILED, "no end after 1 s")
    assert record["seconds"] < 20
    said, started = record["output"].split()
    assert said == "on"
    assert not is_running(int(started))
    late = gpu_check.run_step(step, -1, dry_run=False)
    assert (late["status"], late["why"]) == (gpu_check.NOT_RUN, "the time was used up")


def test_a_stopped_step_keeps_what_it_had_found() -> None:
    code = f"import time; {WRITE.format('{{}}')}; time.sleep(60)"
    record = gpu_check.run_step(python(code), 5, dry_run=False)
    assert (record["status"], record["why"]) == (gpu_check.FAILED, "no end after 5 s")
    assert record["results"] == {}


def test_results_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "output"

    def run(device: torch.device, *, small: bool) -> Iterator[dict[str, object]]:
        yield {"cases": 1}
        assert gpu_check.read_json(output) == {"cases": 1}
        raise ValueError("the second case")

    monkeypatch.setattr(operators, "run", run)
    command = ["gpu", "operators", "--device", "cpu", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(ValueError, match="the second case"):
        gpu_step()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert gpu_check.read_json(output) == {"cases": 1}


def test_nothing_runs_without_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [python("raise SystemExit(1)"), python("pass", read=gpu_check.read_nothing)]
    monkeypatch.setattr(gpu_check, "plan", lambda device: steps)
    first, second = gpu_check.check("cuda", dry_run=False)
    assert first["status"] == gpu_check.FAILED
    assert (second["status"], second["why"]) == (gpu_check.NOT_RUN, "there is no build")


def test_a_step_has_the_time_that_those_before_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = python(f"import time; time.sleep(2); {WRITE.format('{{}}')}")
    steps = [python("pass", read=gpu_check.read_nothing), dataclasses.replace(slow, seconds=1)]
    monkeypatch.setattr(gpu_check, "plan", lambda device: steps)
    assert [r["status"] for r in gpu_check.check("cuda", dry_run=False)] == [gpu_check.PASSED] * 2


JUNIT = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">
<testcase classname="tests.test_a" name="test_x"><failure>no</failure></testcase>
<testcase classname="tests.test_a" name="test_y"><skipped message="the CPU's"/></testcase>
<testcase classname="tests.test_a" name="test_z"/></testsuite></testsuites>"""


def test_junit_results(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT, encoding="utf-8")
    found = gpu_check.read_junit(path)
    assert (found["tests"], found["failures"], found["failed"]) == (3, 1, ["tests.test_a::test_x"])
    assert found["why skipped"] == {"the CPU's": 1}
    path.write_text('<testsuites><testsuite tests="0"/></testsuites>', encoding="utf-8")
    with pytest.raises(ValueError, match="no test ran"):
        gpu_check.read_junit(path)
