"""The examples of the README and of the guides run as written.

A page's blocks run one after the other in a directory that has ``docs`` and nothing else: Python in
one namespace and, of all pages but the README, the lines of shell blocks, which begin with
``hullft-ops``.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from typer.testing import CliRunner

from hullft_ops.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    # The README's commands set up an environment, or need a model from a network.
    return [b for b in found if b[0] == "python" or page.name != "README.md"]


WITH_BLOCKS = [page for page in PAGES if blocks(page)]


def test_there_are_blocks() -> None:
    assert len(blocks(PAGES[0])) >= 2
    guides = [page.stem for page in WITH_BLOCKS if page.parent.name == "guides"]
    named = ["datastore", "evaluation", "experts", "kernels", "library", "loop", "scale", "ttft"]
    assert guides == named
    assert any(kind == "bash" for page in WITH_BLOCKS for kind, _ in blocks(page))


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    namespace: dict[str, Any] = {}
    for number, (kind, text) in enumerate(blocks(page)):
        if kind == "python":
            exec(compile(text, f"{page.name}, block {number}", "exec"), namespace)
        else:
            for line in text.splitlines():
                run(line)


def run(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "hullft-ops"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{line}\n{result.output}"
