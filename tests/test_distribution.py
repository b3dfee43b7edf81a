"""What decides whether a distribution is good: tools/check_sdist and the bounds of dependencies."""

import re
import tomllib
from pathlib import Path

import check_sdist

ROOT = Path(__file__).parent.parent
LOWER_BOUND = re.compile(r"[\w.-]+(\[[\w,-]+\])?>=[\w.]+")


def test_sdist_differences() -> None:
    tracked = [
        "csrc/ops.cpp",
        ".ci/run",
        "benchmarks/results/cpu.md",
        "benchmarks/report.py",
    ]
    packed = ["csrc/ops.cpp", "benchmarks/report.py", "PKG-INFO"]

    assert check_sdist.differences(tracked, packed) == []
    assert check_sdist.differences(tracked, packed[1:]) == [
        "missing from the sdist: csrc/ops.cpp"
    ]
    assert check_sdist.differences(tracked, [*packed, ".ci/run", "notes.txt"]) == [
        "should not be in the sdist: .ci/run",
        "should not be in the sdist: notes.txt",
    ]


def test_every_dependency_has_a_plain_lower_bound() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"]
    requirements = [
        *pyproject["project"]["dependencies"],
        *pyproject["build-system"]["requires"],
    ]

    for name, extra in extras.items():
        if name != "all":  # it names the other extras
            requirements += extra

    for requirement in requirements:
        assert LOWER_BOUND.fullmatch(requirement), requirement
