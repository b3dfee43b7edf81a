"""Runs the tests where every direct dependency has the lowest version that pyproject.toml allows.

python tools/lowest_versions.py [--extra ttft --extra test ...] [--work DIR] [PYTEST ARGUMENT ...]

uv resolves the bounds (``--resolution lowest-direct``), the build requirements included, and prints
what it took. A bound that another package's requirements lift is an error, since nothing would try
it. Needs uv (pip install uv). torch's lowest version is some GB, so this is not part of the tests.
A bound that does not hold is raised in pyproject.toml, not worked around.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.version import Version

from wheel_matrix import ROOT, tool

EXTRAS = ("ttft", "test", "bench", "lm-eval", "qdrant", "ray")


def lowest(requirement: str) -> str:
    """The requirement with its lower bound as the only version: ``a>=1.2`` becomes ``a==1.2``."""
    match = re.fullmatch(r"([\w.-]+(?:\[[\w,-]+\])?)>=([\w.]+)", requirement)
    if match is None:
        sys.exit(
            f"lowest_versions: {requirement!r} has no lower bound; wanted NAME>=VERSION"
        )
    return f"{match[1]}=={match[2]}"


def constraints_of(project: dict[str, Any], extras: list[str]) -> list[str]:
    """The lowest version of each direct dependency: of two bounds on one package the higher."""
    bounds: dict[str, Version] = {}
    for requirement in [
        *project["dependencies"],
        *(r for extra in extras for r in project["optional-dependencies"][extra]),
    ]:
        # An extra has no place in a constraint.
        name, version = re.sub(r"\[.*\]", "", lowest(requirement)).split("==")
        bounds[name] = max(Version(version), bounds.get(name, Version(version)))
    return [f"{name}=={version}" for name, version in bounds.items()]


def write_lines(file: Path, lines: list[str]) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--extra", action="append", help=f"default: {', '.join(EXTRAS)}"
    )
    parser.add_argument("--python", default=sys.executable, help="version or path")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "lowest")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    extras = arguments.extra or list(EXTRAS)
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    direct = constraints_of(pyproject["project"], extras)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = work / "environment" / "bin" / "python"
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    constraints = write_lines(work / "constraints.txt", direct)
    build_constraints = write_lines(
        work / "build_constraints.txt",
        [*map(lowest, pyproject["build-system"]["requires"])],
    )

    def uv(*command: str | Path) -> None:
        subprocess.run([tool("uv"), *map(str, command)], check=True, env=environment)

    uv(
        "venv",
        "-q",
        "--clear",
        "--no-project",
        "--python",
        arguments.python,
        work / "environment",
    )
    uv("pip", "install", "--python", python, "--resolution", "lowest-direct",
       "--constraint", constraints, "--build-constraint", build_constraints,
       "-C", "cmake.define.HULLFT_CUDA=OFF",
       f"{ROOT}[{','.join(extras)}]")  # fmt: skip
    uv("pip", "freeze", "--python", python)
    result = subprocess.run(
        [python, "-m", "pytest", *arguments.pytest], cwd=ROOT, check=False
    )
    sys.exit(result.returncode)


if __name__ == "__main__":
    main()
