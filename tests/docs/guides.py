"""The README and the guides, and running their blocks.

A page's blocks run one after the other in the working directory: Python in one namespace and, of
all pages but the README, the lines of shell blocks, which begin with ``hullft-ops``.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command import succeeded

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# tests/distributed, which has started Ray, runs this one.
DISTRIBUTED = ROOT / "docs" / "guides" / "distributed.md"
# test_rerank.py, which has stand-ins for other packages, runs this one.
RERANK = ROOT / "docs" / "guides" / "rerank.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    # The README's commands set up an environment, or need a model from a network.
    return [b for b in found if b[0] == "python" or page.name != "README.md"]


def run(line: str) -> None:
    program, *arguments = shlex.split(line)

    assert program == "hullft-ops"

    succeeded(*arguments)


def run_blocks(page: Path, run: Callable[[str], None] = run) -> dict[str, Any]:
    """The namespace that the blocks leave."""
    namespace: dict[str, Any] = {}
    for number, (kind, text) in enumerate(blocks(page)):
        if kind == "python":
            exec(compile(text, f"{page.name}, block {number}", "exec"), namespace)
        else:
            for line in text.splitlines():
                run(line)

    return namespace
