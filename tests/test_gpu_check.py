"""The check that runs on a GPU: its steps rehearsed here, and what becomes of failing ones."""

import gzip
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from os import sched_yield
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import gpu_check
from benchmarks.gpu import build, calls, launches, operators, selection
from benchmarks.gpu.__main__ import main as gpu_step
from benchmarks.gpu.plan import BUDGET_SECONDS, operator_tests, plan
from benchmarks.gpu.readers import read_json, read_junit, read_ncu
from benchmarks.gpu.step import (
    FAILED,
    NOT_RUN,
    PASSED,
    REHEARSED,
    ROOT,
    Step,
    run_step,
)

from processes import is_running

# A GPU machine lacks them. Python imports this module at its start.
SITECUSTOMIZE = """
import sys
for name in ("activeft", "datasets", "faiss", "jinja2", "peft", "pydantic", "scipy"):
    sys.modules[name] = None
"""
CPU = torch.device("cpu")


@pytest.mark.long
def test_every_step_but_the_launches_runs_where_a_gpu_machine_lacks_what_it_lacks(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    output = tmp_path / "new" / "gpu.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--dry-run"]
    done = subprocess.run(
        [*command, "--commit", "0123456", "--output", output],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    log = output.with_suffix(".log").read_text(encoding="utf-8")
    summary = json.loads(output.read_text(encoding="utf-8"))
    steps = {step["name"]: step for step in summary["steps"]}

    assert list(steps) == [step.name for step in plan("cuda:0")]
    assert [step["status"] for step in steps.values()] == [
        NOT_RUN if step.rehearsal is None else REHEARSED for step in plan("cuda:0")
    ], log
    assert done.returncode == 3
    assert all(f"== {name}:" in log for name in steps)
    assert "needs a GPU" in steps["build"]["why"]
    assert (summary["dry_run"], summary["commit"]) == (True, "0123456")

    tests = steps["tests"]["results"]
    assert tests["tests"] > tests["failures"] == tests["errors"] == 0

    checked = steps["operators"]["results"]["checked"]
    assert len(checked) == 96

    captured = steps["graphs"]["results"]["captured"]
    assert captured == [*checked, "ReplayAdam, capturable"]

    for name in ("selection", "replay", "ttft"):
        assert all(c["seconds"] > 0 for c in steps[name]["results"]["comparisons"])
        assert all(goal["met"] for goal in steps[name]["results"]["goals"])

    page = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "| selection | rehearsed on the CPU |" in page
    assert "| ttft gpt2-small-short-N4-r2 | " in page

    with gzip.open(output.with_suffix(".trace.json.gz")) as trace:
        assert json.load(trace)["traceEvents"]


def python(code: str, **options: Any) -> Step:
    """A step that writes ``output`` by Python code."""
    beginning = "import sys, pathlib; output = pathlib.Path(sys.argv[1])\n"
    command = [sys.executable, "-c", beginning + code, "{output}"]
    return Step("a step", 20, command, **{"read": read_json, **options})


WRITE = "output.write_text('[]')"


@pytest.mark.parametrize(
    ("step", "status", "why"),
    [
        (python(WRITE), PASSED, ""),
        (python("output.write_text('no')"), FAILED, "its results cannot be used"),
        (python("pass"), FAILED, "it wrote no results"),
        (python("raise SystemExit(7)"), FAILED, "exit status 7"),
        (python("import os; os.abort()"), FAILED, "exit status -6"),
        (python("pass", read=None), PASSED, ""),
        (python("pass", modules=("json", "no_such")), NOT_RUN, "needs no_such"),
        (python("pass", tools=("no-such-tool",)), NOT_RUN, "needs no-such-tool"),
        (Step("gone", 20, ["no-such"]), FAILED, "No such file"),
    ],
)
def test_what_becomes_of_a_step(step: Step, status: str, why: str) -> None:
    record, _ = run(step, step.seconds)
    assert (record["status"], why in record["why"]) == (status, True), record
    assert status != PASSED or record["why"] == ""

    json.dumps(record)


def run(step: Step, seconds: float) -> tuple[dict[str, Any], str]:
    """The record, and the log."""
    with tempfile.TemporaryFile() as log:
        record = run_step(step, seconds, log, dry_run=False)
        log.seek(0)
        return record, log.read().decode()


def test_a_step_that_does_not_end_is_stopped_with_its_children() -> None:
    # A shell, which has said so long before the time is over, however busy the machine.
    step = Step("endless", 20, ["sh", "-c", "sleep 60 & echo on $!; wait"])
    start = monotonic()
    record, log = run(step, 1)

    assert (record["status"], record["why"]) == (FAILED, "no end after 1 s")

    word, child = log.splitlines()[-1].split()
    assert word == "on"

    # What was killed takes a moment to end.
    while is_running(int(child)) and monotonic() - start < 30:
        sched_yield()

    assert not is_running(int(child))

    late, _ = run(step, -1)
    assert (late["status"], late["why"]) == (NOT_RUN, "the time was used up")


def test_a_stopped_step_keeps_its_results_so_far() -> None:
    record, _ = run(python(f"{WRITE}\nimport time; time.sleep(60)"), 5)
    assert (record["status"], record["why"]) == (FAILED, "no end after 5 s")
    assert record["results"] == []


def test_results_are_written_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"

    def run(device: torch.device, *, small: bool) -> Iterator[dict[str, object]]:
        yield {"cases": 1, "off": [math.nan, -math.inf]}
        assert read_json(output) == {"cases": 1, "off": [None, None]}

        raise ValueError("the second case")

    monkeypatch.setattr(operators, "run", run)
    command = ["gpu", "operators", "--device", "cpu", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(ValueError, match="the second case"):
        gpu_step()

    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def check(monkeypatch: pytest.MonkeyPatch, *steps: Step) -> list[dict[str, Any]]:
    monkeypatch.setattr(gpu_check, "plan", lambda device: steps)
    with tempfile.TemporaryFile() as log:
        return list(gpu_check.check("cuda", log, dry_run=False))


def test_nothing_runs_without_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    build = replace(python("raise SystemExit(1)"), name="build")
    first, second = check(monkeypatch, build, python(WRITE))

    assert first["status"] == FAILED
    assert (second["status"], second["why"]) == (NOT_RUN, "there is no build")


def test_a_step_has_the_time_that_those_before_it_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = replace(python(f"import time; time.sleep(2); {WRITE}"), seconds=1)
    records = check(monkeypatch, python(WRITE), slow)

    assert [record["status"] for record in records] == [PASSED] * 2


def test_the_plan_fits_the_time_and_has_every_operator_test() -> None:
    assert sum(step.seconds for step in plan("cuda:0")) <= BUDGET_SECONDS < 9 * 60

    named = {Path(path).stem for path in operator_tests()}
    assert {"test_fw_select", "test_adam_replay", "test_registration"} <= named
    assert "test_packaging" not in named


@pytest.mark.parametrize("has_pip", [True, False])
def test_the_build_is_for_the_card_that_torch_sees(
    monkeypatch: pytest.MonkeyPatch, has_pip: bool
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=4)

    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (9, device.index)
    )
    monkeypatch.setattr(build, "find_spec", lambda name: has_pip or None)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["build", "--device", "cuda:1"])

    assert build.main() == 4

    *before, install = commands
    assert before == ([] if has_pip else [[sys.executable, "-m", "ensurepip"]])
    assert install[:4] == [sys.executable, "-m", "pip", "install"]
    assert "cmake.define.HULLFT_CUDA_ARCHITECTURES=91-real" in install


def test_an_operator_that_computes_something_else_is_noticed() -> None:
    for call in calls.calls(seed=0).values():
        outputs = call.run(*call.on(CPU))
        call.assert_right(outputs)

        with pytest.raises(AssertionError):
            call.assert_right([output * 1.01 + 1 for output in outputs])


def test_a_selection_that_differs_is_recorded_and_the_step_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = dict.fromkeys(selection.ALLOWED_DIFFERENCES, 2e-4)
    monkeypatch.setattr(selection, "differences", lambda *arguments: off)
    *_, results = selection.run(CPU, small=True)

    assert len(results["comparisons"]) == 2
    assert all(c["facts"].items() >= off.items() for c in results["comparisons"])
    assert [goal["met"] for goal in results["goals"]] == [False] * 6


JUNIT = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">
<testcase classname="tests.test_a" name="test_x"><failure>no</failure></testcase>
<testcase classname="tests.test_a" name="test_y"><skipped message="the CPU's"/></testcase>
<testcase classname="tests.test_a" name="test_z"/></testsuite></testsuites>"""


def test_junit_results(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT, encoding="utf-8")
    results = read_junit(path)

    assert (results["tests"], results["failures"]) == (3, 1)
    assert results["failed"] == ["tests.test_a::test_x"]
    assert results["why skipped"] == {"the CPU's": 1}

    path.write_text('<testsuites><testsuite tests="0"/></testsuites>', encoding="utf-8")
    with pytest.raises(ValueError, match="no test ran"):
        read_junit(path)


NCU = """==PROF== Profiling "adam_kernel" - 0: 0%....100% - 40 passes
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","12","adam_kernel","GPU Speed Of Light Throughput","Duration","us","1,210.5"
"0","12","adam_kernel","GPU Speed Of Light Throughput","","",""
"0","12","adam_kernel","Occupancy","Achieved Occupancy","%","61.2"
"""


def test_metrics_of_kernels(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_text(NCU, encoding="utf-8")
    metrics = {"Duration": "1,210.5 us", "Achieved Occupancy": "61.2 %"}

    assert read_ncu(path) == {"metrics": {"adam_kernel": metrics}}

    path.write_text("==ERROR== ERR_NVGPUCTRPERM", encoding="utf-8")
    with pytest.raises(ValueError, match="no launch was profiled"):
        read_ncu(path)


def test_the_kernels_to_profile_are_in_the_sources() -> None:
    (launched,) = launches.run(CPU, small=True)
    (step,) = (step for step in plan("cuda:0") if step.name == "ncu")
    pattern = step.command[step.command.index("--kernel-name") + 1]
    kernels = [path.read_text() for path in (ROOT / "csrc/cuda").glob("*.cu")]

    for name in launched["launched"]:
        assert re.search(pattern.removeprefix("regex:"), name)
        assert f" {name}(" in "".join(kernels)
