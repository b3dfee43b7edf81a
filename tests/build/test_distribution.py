"""The bounds of dependencies."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOWER_BOUND = re.compile(r"[\w.-]+(\[[\w,-]+\])?>=[\w.]+")


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
