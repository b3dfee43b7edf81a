"""What decides whether a distribution is good: tools/wheel_matrix, check_sdist, lowest_versions."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import check_sdist
import lowest_versions
import wheel_matrix

ROOT = Path(__file__).parent.parent


def test_sdist_differences() -> None:
    tracked = [
        "csrc/ops.cpp",
        ".ci/run",
        "benchmarks/results/cpu.md",
        "benchmarks/results.py",
    ]
    packed = ["csrc/ops.cpp", "benchmarks/results.py", "PKG-INFO"]
    assert check_sdist.differences(tracked, packed) == []
    assert check_sdist.differences(tracked, packed[1:]) == [
        "missing from the sdist: csrc/ops.cpp"
    ]
    assert check_sdist.differences(tracked, [*packed, ".ci/run", "notes.txt"]) == [
        "should not be in the sdist: .ci/run",
        "should not be in the sdist: notes.txt",
    ]


def test_platform_tags_that_name_a_glibc() -> None:
    name = "hullft_ops-0.1.0-cp311-cp311-{}.whl"
    granted = Path(name.format("manylinux_2_27_x86_64.manylinux_2_28_x86_64"))
    assert wheel_matrix.manylinux(granted) == [
        "manylinux_2_27_x86_64",
        "manylinux_2_28_x86_64",
    ]
    assert wheel_matrix.manylinux(Path(name.format("linux_x86_64"))) == []


@pytest.fixture
def uv(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the commands of wheel_matrix end with, by a word that their last argument has."""
    statuses: dict[str, int] = {}

    def run(*command: str | Path) -> str:
        for word, status in statuses.items():
            if word in str(command[-1]):
                raise subprocess.CalledProcessError(status, str(command))
        return "built somehow\nworks with torch 2.99.0+cpu\n"

    monkeypatch.setattr(wheel_matrix, "run", run)
    monkeypatch.setattr(wheel_matrix, "tool", lambda name: name)
    return statuses


def run_matrix(
    monkeypatch: pytest.MonkeyPatch, work: Path, *options: str
) -> int | str | None:
    wheel = "hullft_ops-0.1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    command = ["wheel_matrix", "--work", str(work), "--wheel", wheel, *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        wheel_matrix.main()
    return ended.value.code


ONE_TORCH = "| Python | torch newest |\n| --- | --- |\n"
TWO_TORCHES = "| Python | torch 1.0 | torch newest |\n| --- | --- | --- |\n"


@pytest.mark.parametrize(
    ("torches", "word", "status", "code", "table"),
    [
        (
            ["1.0", "newest"],
            "torch==1.0",
            1,
            0,
            f"{TWO_TORCHES}| cp311 | no such torch for it | works: 2.99.0+cpu |\n",
        ),
        (["newest"], "3.99", 2, 1, f"{ONE_TORCH}| 3.99 | no such Python here |\n"),
        (["newest"], "torch", 1, 1, f"{ONE_TORCH}| cp311 | no such torch for it |\n"),
        (["newest"], "torch", 2, 1, f"{ONE_TORCH}| cp311 | FAILED |\n"),
        (["newest"], ".whl", 1, 1, f"{ONE_TORCH}| cp311 | FAILED |\n"),
        (["newest"], "operator_smoke", 1, 1, f"{ONE_TORCH}| cp311 | FAILED |\n"),
    ],
)
def test_the_table_and_the_exit_code_say_what_was_seen_to_work(
    uv: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    torches: list[str],
    word: str,
    status: int,
    code: int,
    table: str,
) -> None:
    uv[word] = status
    options = ["--python", "3.99", "--torch", *torches]
    assert run_matrix(monkeypatch, tmp_path, *options) == code
    assert capsys.readouterr().out.endswith(table)


def test_every_dependency_has_a_lower_bound() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    own = {"all"}  # names the other extras
    listed = [
        r
        for name, extra in project["optional-dependencies"].items()
        if name not in own
        for r in extra
    ]
    for requirement in [
        *project["dependencies"],
        *listed,
        *pyproject["build-system"]["requires"],
    ]:
        assert lowest_versions.lowest(requirement) == requirement.replace(">=", "==")


@pytest.mark.parametrize("requirement", ["torch", "torch==2.13", "torch>=2.11,<3"])
def test_a_dependency_without_a_plain_lower_bound_is_named(requirement: str) -> None:
    with pytest.raises(SystemExit, match=f"{requirement!r} has no lower bound"):
        lowest_versions.lowest(requirement)


def test_each_direct_dependency_is_held_at_the_highest_of_its_bounds() -> None:
    project = {
        "dependencies": ["torch>=2.11"],
        "optional-dependencies": {
            "ttft": ["numpy>=1.9"],
            "test": ["numpy>=1.26", "coverage[toml]>=7.10"],
            "bench": ["numpy>=1.11"],
            "docs": ["numpy>=2"],
        },
    }
    held = lowest_versions.constraints_of(project, ["ttft", "test", "bench"])
    assert held == ["torch==2.11", "numpy==1.26", "coverage==7.10"]
