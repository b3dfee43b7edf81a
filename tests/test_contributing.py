"""The list of an operator's files in CONTRIBUTING.md has every file; every operator has them."""

import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from on_device import operators

ROOT = Path(__file__).parent.parent
FOLDERS = (
    "benchmarks",
    "cmake",
    "csrc",
    "docs",
    "examples",
    "python",
    "tests",
    "tools",
)
SUFFIXES = {".cmake", ".cpp", ".cu", ".cuh", ".h", ".md", ".py", ".txt"}
# This test, and the guide itself.
OF_THE_LIST = ["CONTRIBUTING.md", "tests/test_contributing.py"]


@cache
def texts() -> dict[str, str]:
    """By their paths from the root on."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*")
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in files
        if path.suffix in SUFFIXES
    }


def naming(operator: str) -> list[str]:
    """The files that name the operator."""
    word = re.compile(rf"\b(launch_)?{operator}_?(_kernel)?\b")
    return [path for path, text in texts().items() if word.search(text)]


def items() -> list[list[str]]:
    """The patterns before the colon of each item."""
    section = texts()["CONTRIBUTING.md"].partition("## A new operator")[2]
    lines = re.findall(r"- \[ \] (.+?):", section.partition("\n## ")[0], re.DOTALL)
    return [re.findall("`(.+?)`", line) for line in lines]


def test_the_list_has_every_file() -> None:
    patterns = [p.replace("NAME", "integerize") for item in items() for p in item]
    paths = naming("integerize")
    assert len(patterns) > 20

    for pattern in patterns:
        assert any(fnmatch(path, pattern) for path in paths), pattern

    others = [p for p in paths if not any(fnmatch(p, pattern) for pattern in patterns)]
    assert sorted(others) == OF_THE_LIST


NAMES = [
    operator._schema.name.split("::")[1].rstrip("_")
    for operator in operators()
    if operator._schema.returns or operator._schema.is_mutable
]


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_has_the_files_of_the_list(name: str) -> None:
    paths = naming(name)

    for item in items():
        patterns = [pattern.replace("NAME", "*") for pattern in item]
        assert any(fnmatch(path, p) for path in paths for p in patterns), item
