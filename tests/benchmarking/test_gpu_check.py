"""The check that runs on a GPU: its steps rehearsed here, and what becomes of failing ones."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import gpu_check
from benchmarks.gpu import build, operators
from benchmarks.gpu import step as gpu_step
from benchmarks.gpu.findings import read_findings
from benchmarks.gpu.plan import BUDGET_SECONDS, operator_tests, plan
from benchmarks.gpu.step import FAILED, NOT_RUN, PASSED, REHEARSED, ROOT, Step, run_step

from processes import is_running, wait_for

# A GPU machine lacks them. Python imports this module at its start.
SITECUSTOMIZE = """
import sys
for name in ("activeft", "datasets", "faiss", "jinja2", "peft", "pydantic", "scipy"):
    sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine that lacks what a GPU machine lacks, git too."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "PATH": str(folder)}


def test_a_rehearsal_on_a_machine_that_lacks_what_a_gpu_machine_lacks(
    tmp_path: Path, bare: dict[str, str]
) -> None:
    output = tmp_path / "new" / "gpu.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--dry-run", "--steps"]
    command += ["operators", "tests", "racecheck"]
    done = subprocess.run(
        [*command, "--commit", "0123456", "--output", output],
        cwd=ROOT,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    log = output.with_suffix(".log").read_text(encoding="utf-8")
    summary = json.loads(output.read_text(encoding="utf-8"))
    checked, tests, racecheck = summary["steps"]

    assert checked["status"] == tests["status"] == REHEARSED, log
    assert (racecheck["status"], done.returncode) == (NOT_RUN, 3)
    assert "needs a GPU" in racecheck["why"]
    assert (summary["dry_run"], summary["commit"]) == (True, "0123456")
    assert checked["results"]["tasks"] == len(operators.calls(0, small=True))
    assert tests["results"]["tasks"] > 100
    assert "-- fw_select vanilla torch.float32" in log
    written = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "| operators | rehearsed on the CPU |" in written
    assert written in done.stdout


def test_every_measurement_is_rehearsed(tmp_path: Path, bare: dict[str, str]) -> None:
    output = tmp_path / "findings.jsonl"
    steps = ["environment", "graphs", "selection", "replay", "ttft"]
    command = [sys.executable, "-m", "benchmarks.gpu", *steps, "--small"]
    command += ["--device", "cpu", "--output", str(output)]
    command += ["--beside", str(tmp_path / "gpu")]
    subprocess.run(command, cwd=ROOT, env=bare, check=True)
    results = read_findings(output)

    assert results["failed"] == {}
    assert len(results["speeds"]) == 9
    assert all(s["seconds"] > 0 < s["floor"] for s in results["speeds"])
    facts = results["facts"]
    assert facts["kernels B1-K30-d384-N5-float32-vanilla"]
    assert facts["right gpt2-small-short-N4-r2"]
    assert (tmp_path / "gpu.gpt2-small-short-N4-r2.trace.json.gz").stat().st_size


def python(code: str, **options: Any) -> Step:
    """A step that runs Python code, in which ``output`` is its file."""
    beginning = "import os, sys, time, pathlib; output = pathlib.Path(sys.argv[1])\n"
    command = [sys.executable, "-c", beginning + code, "{output}"]
    return Step("step", 20, command, **options)


def run(step: Step, folder: Path, seconds: float = 20) -> dict[str, Any]:
    """The last record; the log is ``folder / "gpu.log"``."""
    (*_, record) = run_step(step, seconds, folder / "gpu", dry_run=False)
    json.dumps(record, allow_nan=False)
    return record


START = """output.write_text('{"task": "a", "start": true}')"""
RIGHT = START.replace("}", '}\\n{"task": "a", "error": ""}')
# All its tasks are over. Another process would have nothing to do, and find nothing.
SANITIZER = f"if output.exists(): raise SystemExit\n{RIGHT}; raise SystemExit(9)"


@pytest.mark.parametrize(
    ("step", "status", "why"),
    [
        (python(RIGHT), PASSED, ""),
        (python("output.write_text('')"), FAILED, "nothing ran"),
        (python("pass"), FAILED, "it wrote no results"),
        (python("raise SystemExit(7)"), FAILED, "exit status 7"),
        (python(SANITIZER), FAILED, "exit status 9"),
        (python(START), FAILED, "1 of 1 failed"),
        (python("pass", read=None), PASSED, ""),
        (python("pass", modules=("json", "no_such")), NOT_RUN, "needs no_such"),
        (python("pass", tools=("no-such-tool",)), NOT_RUN, "needs no-such-tool"),
    ],
)
def test_what_becomes_of_a_step(
    step: Step, status: str, why: str, tmp_path: Path
) -> None:
    record = run(step, tmp_path)
    assert (record["status"], why in record["why"]) == (status, True), record
    assert status != PASSED or record["why"] == ""


# As a step runs its tasks, with a GPU that an error leaves unusable.
TASKS = """
from types import SimpleNamespace
sys.path[:0] = [os.getcwd()]
cpu = SimpleNamespace(type="cpu")
sys.modules["torch"] = torch = SimpleNamespace(device=object)
from benchmarks.gpu import tasks

def sticky(findings=None, device=None):
    raise RuntimeError("an illegal memory access")

torch.zeros = sticky

def wrong(findings):
    findings.must("off by", float("nan"), 0.5)

def hangs(findings):
    findings.fact("seen", 3)
    time.sleep(60)

named = {
    "sticky": sticky,
    "wrong": wrong,
    "crashes": lambda findings: os.abort(),
    "hangs": hangs,
    "last": lambda findings: findings.speed("it", 2.0, 1.0),
}
print("-- a process")
tasks.run_tasks(named.items(), output, cpu, 1.0)
"""


def test_every_task_is_recorded_whatever_becomes_of_those_before(
    tmp_path: Path,
) -> None:
    record = run(python(TASKS), tmp_path)
    results = record["results"]

    assert (record["status"], record["why"]) == (FAILED, "4 of 5 failed")
    assert results["failed"] == {
        "sticky": ["RuntimeError: an illegal memory access (<string>:10: )"],
        "wrong": ["off by, at most 0.5: nan"],
        "crashes": ["exit status -6"],
        "hangs": ["exit status 1"],
    }
    assert results["facts"]["hangs"] == {"seen": 3}
    assert [speed["task"] for speed in results["speeds"]] == ["last"]

    log = (tmp_path / "gpu.log").read_text()
    # Another after the sticky error, the crash and the hang.
    assert log.splitlines().count("-- a process") == 4
    assert "Timeout (0:00:01)!" in log
    assert "in hangs" in log


def test_a_step_that_does_not_end_leaves_its_stacks_and_no_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = tmp_path / "waits"
    code = f"""{START}
import subprocess
print(subprocess.Popen(["sleep", "60"]).pid)
def waits():
    pathlib.Path({str(waits)!r}).touch()
    time.sleep(60)
waits()"""
    # Its time ends once it waits.
    monkeypatch.setattr(gpu_step, "monotonic", lambda: 60.0 * waits.exists())
    record = run(python(code), tmp_path, 60)
    log = (tmp_path / "gpu.log").read_text()

    assert record["status"] == FAILED
    assert record["why"] == "1 of 1 failed; it was stopped at the end of its time"
    assert "in waits" in log

    child = int(next(line for line in log.splitlines() if line.isdigit()))
    wait_for(lambda: not is_running(child))


KILLED = """
import sys
from benchmarks import gpu_check
from benchmarks.gpu.step import Step
code = {code!r}
step = Step("operators", 60, [sys.executable, "-c", code, "{{output}}"])
gpu_check.plan = lambda device: [Step("build", 60, ["false"]), step]
gpu_check.main(["--no-build", "--output", {output!r}])
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_check_keeps_what_the_step_in_progress_has_found(
    signal_number: signal.Signals, tmp_path: Path
) -> None:
    output = tmp_path / "gpu.json"
    code = f"""import os, sys, time, pathlib
print(os.getpid())
output = pathlib.Path(sys.argv[1])
{START}
time.sleep(60)"""
    script = KILLED.format(code=code, output=str(output))
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as process:
        wait_for(output.exists)
        wait_for(lambda: json.loads(output.read_text())["steps"][0]["results"])
        # The page and the log follow the JSON.
        wait_for(lambda: output.with_suffix(".md").exists())
        log = output.with_suffix(".log")
        wait_for(lambda: any(map(str.isdigit, log.read_text().splitlines())))
        process.send_signal(signal_number)
    (step,) = json.loads(output.read_text())["steps"]
    assert (step["status"], step["results"]["tasks"]) == ("running", 1)
    assert "| operators | running |" in output.with_suffix(".md").read_text()

    lines = log.read_text().splitlines()
    child = int(next(line for line in lines if line.isdigit()))
    if signal_number == signal.SIGKILL:
        os.kill(child, signal.SIGKILL)
    wait_for(lambda: not is_running(child))


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "1"]])
def test_every_report_of_pytest_is_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    for name, text in PROJECT.items():
        (tmp_path / name).write_text(text)
    path = [str(tmp_path), str(ROOT / "tests")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    command = [sys.executable, "-m", "pytest", "--findings", "{output}"]
    command += ["-c", str(tmp_path / "pytest.ini")]
    command += [*options, str(tmp_path)]
    step = Step("tests", 60, command, resumes=not options)
    results = run(step, tmp_path, 60)["results"]
    failed = {task.split("::")[-1]: why for task, (why,) in results["failed"].items()}
    crash = "worker 'gw{}' crashed while running 'test_it.py::test_{}'"

    assert results["tasks"] == 7
    assert results["skipped"] == {"Skipped: not here": 1}
    assert failed.pop("test_wrong") == "assert 1 == 2"
    assert failed.pop("test_broken.py") == "NameError: name 'no_such' is not defined"
    assert failed == {
        "test_dead": crash.format(0, "dead") if options else "RuntimeError: dead",
        "test_crash": crash.format(1, "crash") if options else "exit status -6",
    }


# A stand-in for torch, whose GPU an error leaves unusable.
PROJECT = {
    "torch.py": """
class device:
    def __init__(self, name):
        self.type = name

class Tensor:
    def add_(self, other):
        return self
    def item(self):
        if not alive:
            raise RuntimeError("dead")

alive = True
zeros = lambda *size, device: Tensor()
""",
    "conftest.py": (ROOT / "conftest.py").read_text(),
    "pytest.ini": "[pytest]\naddopts = --continue-on-collection-errors\n",
    "test_broken.py": "no_such",
    "test_it.py": """
import os, pytest, torch

def test_wrong(): assert 1 == 2
def test_skipped(): pytest.skip("not here")
def test_dead():
    torch.alive = False
    raise RuntimeError("dead")
def test_crash(): os.abort()
def test_right(): assert torch.alive
# xdist waits forever where a crash comes last and a file could not be collected.
def test_last(): pass
""",
}


def check(folder: Path, *steps: Step) -> dict[str, dict[str, Any]]:
    """The last record of each step."""
    records = gpu_check.check(steps, folder / "gpu", dry_run=False)
    return {record["name"]: record for record in records}


def test_nothing_runs_without_a_build(tmp_path: Path) -> None:
    build = replace(python("raise SystemExit(1)", read=None), name="build")
    records = check(tmp_path, build, python(RIGHT))

    assert records["build"]["status"] == FAILED
    assert records["step"]["why"] == "there is no build"
    assert records["step"]["status"] == NOT_RUN


def test_a_step_gets_what_is_left_and_the_first_ones_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "BUDGET_SECONDS", 30)
    seconds: list[float] = []

    def run(step: Step, given: float, *arguments: Any, **options: Any) -> Any:
        seconds.append(given)
        return iter([{"name": step.name, "status": PASSED, "why": ""}])

    monkeypatch.setattr(gpu_check, "run_step", run)
    first, second = replace(python(""), seconds=1), replace(python(""), seconds=12)
    last = replace(python(""), name="last", seconds=12)
    records = check(tmp_path, first, second, replace(first, seconds=0))

    assert seconds == pytest.approx([18, 30, 30], abs=1)

    monkeypatch.setattr(gpu_check, "BUDGET_SECONDS", 9)
    records = check(tmp_path, last)
    assert records["last"]["why"] == "no time left: --steps last"


def test_the_plan_fits_the_time_and_has_every_operator_test() -> None:
    steps = {step.name: step for step in plan("cuda:0")}
    assert sum(step.seconds for step in steps.values()) <= BUDGET_SECONDS < 9 * 60
    assert steps["build"].seconds >= 4 * 60

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
