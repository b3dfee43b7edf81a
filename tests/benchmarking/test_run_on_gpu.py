"""The run on a GPU, rehearsed on the CPU, and what becomes of tests that fail or do not end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from benchmarks import run_on_gpu

ROOT = run_on_gpu.ROOT
# A machine with a GPU lacks them. Python imports this module at its start.
SITECUSTOMIZE = """
import sys
for name in ("activeft", "datasets", "faiss", "pyversity"):
    sys.modules[name] = None
"""

Run = Callable[..., SimpleNamespace]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs files on the CPU, without a build."""
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    environment.pop(
        "PYTEST_XDIST_WORKER", None
    )  # pytest-benchmark measures nothing there
    output = tmp_path / "new" / "output"
    command = [sys.executable, "-m", "benchmarks.run_on_gpu", str(output)]
    command += ["--no-build", "--device", "cpu"]

    def run(*arguments: str, options: str = "") -> SimpleNamespace:
        done = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env=environment | {"PYTEST_ADDOPTS": options},
            check=False,
        )
        outcomes = {}
        for case in ElementTree.parse(output / "junit.xml").iter("testcase"):
            outcomes[case.get("name")] = [outcome.tag for outcome in case]

        return SimpleNamespace(
            status=done.returncode,
            files={path.name: path.read_text() for path in output.iterdir()},
            outcomes=outcomes,
        )

    return run


def test_a_rehearsal_on_a_machine_that_lacks_what_a_gpu_machine_lacks(run: Run) -> None:
    """All files of benchmarks/gpu in one process: each in its own is tested below."""
    files = ["benchmarks/gpu", "benchmarks/bench_selection.py"]
    large = "columns or global or not float32 and (many or rows)"
    ran = run(*files, options=f"--smoke -k 'not ({large})'")

    assert ran.status == 0, ran.files["log.txt"]
    assert set(ran.files) == {"benchmarks.json", "junit.xml", "log.txt", "page.md"}

    measured = json.loads(ran.files["benchmarks.json"])["benchmarks"]
    groups = {one["extra_info"]["group"] for one in measured}
    of_a_gpu = {"lstsq_floor", "replay_floor", "selection_floor", "selection_kernels"}

    assert groups == {"selection", *of_a_gpu}
    assert "pyversity is not installed" in ran.files["log.txt"]

    skipped = {name for name, tags in ran.outcomes.items() if tags == ["skipped"]}

    assert len(ran.outcomes) > 190
    assert {name.partition("[")[0] for name in skipped} == {
        "test_all_mantissas",
        "test_nothing_is_reported",
    }
    assert "- 4: there is nothing to check on the CPU" in ran.files["page.md"]


TESTS = {
    "conftest.py": (ROOT / "conftest.py").read_text(),
    "test_broken.py": "no_such",
    "test_crash.py": "import os\ndef test_crash(): os.abort()",
    "test_hang.py": """
import time, pytest
@pytest.mark.timeout(1)
def test_hang(): time.sleep(60)
""",
    "test_outcomes.py": """
import pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_skipped(): pytest.skip("needs a moon")
""",
    "test_package.py": "import pytest\npytest.importorskip('no_such_package')",
    "test_unusable.py": """
import torch
def test_unusable():
    def synchronize(): raise RuntimeError("illegal memory access")
    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = synchronize
    raise RuntimeError("illegal memory access")
def test_after(): pass
""",
}


def test_every_file_is_run_whatever_becomes_of_those_before(
    tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    for name, text in TESTS.items():
        (folder / name).write_text(text)

    files = sorted(map(str, folder.glob("test_*.py")))
    ran = run(*files, options="-p no:faulthandler")
    page = ran.files["page.md"]

    assert ran.status == 1
    assert ran.outcomes["test_right"] == []
    assert ran.outcomes["test_wrong"] == ran.outcomes["test_unusable"] == ["failure"]
    assert ran.outcomes["test_skipped"] == ["skipped"]
    assert "test_after" not in ran.outcomes
    assert "- 1: needs a moon" in page
    assert "Skipped: could not import 'no_such_package'" in page
    assert "test_wrong: assert 1 == 2" in page
    assert "NameError: name 'no_such' is not defined" in ran.files["log.txt"]

    for name, status in (("crash", -6), ("hang", 1), ("unusable", 2)):
        message = f"test_{name}.py process: the process ended with status {status}"
        assert message in page


def test_what_there_is_no_time_for_is_skipped(tmp_path: Path, run: Run) -> None:
    files = ["benchmarks/gpu/test_operators.py", "benchmarks/bench_lmo.py"]
    ran = run(*files, "--seconds", "0")

    assert ran.status == 0
    assert "- 2: no time was left" in ran.files["page.md"]

    (tmp_path / "conftest.py").write_text(TESTS["conftest.py"])
    test = tmp_path / "test_times.py"
    test.write_text("import time\ndef test_a(): time.sleep(5)\ndef test_b(): pass\n")
    ran = run(str(test), "--seconds", "4")

    assert ran.outcomes == {"test_a": [], "test_b": ["skipped"]}


def test_without_kernels_that_can_run_nothing_is_run(run: Run) -> None:
    ran = run("benchmarks/bench_lmo.py", "--device", "cuda")

    assert ran.status == 1
    assert "kernels process: the process ended with status 1" in ran.files["page.md"]


def test_each_pattern_names_a_file() -> None:
    for pattern in run_on_gpu.PATTERNS:
        assert list(ROOT.glob(pattern)), pattern


def test_what_a_process_leaves_unfinished_is_passed_over(tmp_path: Path) -> None:
    for name, text in (
        ("a", '{"benchmarks": []}'),
        ("b", '{"bench'),
        ("c", ""),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "benchmarks.json").write_text(text)

    suites = ElementTree.Element("testsuites")
    run_on_gpu.write(tmp_path, tmp_path, suites)

    assert "# Tests" in (tmp_path / "page.md").read_text()

    cut = "printf '<testsuites><testsu' > junit.xml; exit 1"
    command = ["sh", "-c", f"cd {tmp_path / 'd'}; {cut}"]
    [suite] = run_on_gpu.run("d", tmp_path / "d", command)

    assert suite[0][0].get("message") == "the process ended with status 1: see log.txt"


def test_the_build_is_for_the_card_that_torch_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    command = run_on_gpu.build_command()

    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert "cmake.define.HULLFT_CUDA_ARCHITECTURES=90-real" in command
