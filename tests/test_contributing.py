"""The list of an operator's files in CONTRIBUTING.md is that of a real operator."""

import re
from pathlib import Path, PurePath

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
OPERATOR = "integerize"


def listed() -> list[str]:
    """The patterns before the colon of each item."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = guide.partition("## A new operator")[2].partition("\n## ")[0]
    items = re.findall(r"- \[ \] (.+?):", section)
    patterns = [pattern for item in items for pattern in re.findall("`(.+?)`", item)]
    return [pattern.replace("NAME", OPERATOR) for pattern in patterns]


def naming() -> list[PurePath]:
    """The files that name the operator, from the root on."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*")
    word = re.compile(rf"\b(launch_)?{OPERATOR}(_kernel)?\b")
    return [
        path.relative_to(ROOT)
        for path in files
        if path.suffix in SUFFIXES and word.search(path.read_text(encoding="utf-8"))
    ]


def test_the_list_of_an_operators_files_is_whole() -> None:
    names, patterns = naming(), listed()
    assert len(patterns) > 20

    for pattern in patterns:
        assert any(name.match(pattern) for name in names), pattern

    not_listed = [
        str(name)
        for name in names
        if not any(name.match(pattern) for pattern in patterns)
    ]
    # This test, and the guide itself.
    assert sorted(not_listed) == ["CONTRIBUTING.md", "tests/test_contributing.py"]
