"""Builds the extension with its CUDA kernels against a CUDA build of torch, and imports it there.

python tools/check_cuda_build.py --torch torch==2.13.0 [--work DIR]
python tools/check_cuda_build.py --python VENV/bin/python

The first makes an environment and downloads that torch (5 GB), the second takes one that has it.
Needs nvcc, no GPU: without one nothing is launched. Every symbol is resolved on import, every
operator must have a CUDA kernel, and the CPU operators must work as in any other build.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD_TOOLS = (
    "scikit-build-core>=0.11",
    "pybind11>=2.13",
    "cmake>=3.26",
    "ninja",
    "numpy",
)
REGISTERED = """
import torch
if torch.version.cuda is None:
    raise SystemExit(f"torch {torch.__version__} is not a CUDA build")
import hullft_ops
from hullft_ops import _C
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("hullft_ops::")]
for key in ("CPU", "CUDA"):
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    without = [name for name in names if not has_kernel(name, key)]
    if without or not names:
        raise SystemExit(f"no {key} kernel for {without or 'any operator'}")
print(f"torch {torch.__version__}, its CUDA {torch.version.cuda}, build {_C.build_info()}")
print(f"CPU and CUDA kernels of {len(names)} operators: {', '.join(sorted(names))}")
"""


def run(*command: str | Path, **environment: str) -> None:
    env = os.environ | environment
    subprocess.run([str(part) for part in command], check=True, env=env)


def make_environment(home: Path, requirement: str) -> Path:
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    run(python, "-m", "pip", "install", "-q", requirement)
    return python


def install(python: Path, scratch: Path) -> None:
    """Against the torch of that environment, in a build folder of its own."""
    run(python, "-m", "pip", "install", "-q", *BUILD_TOOLS)
    tools = python.parent
    run(
        python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps",
        "--force-reinstall", "-C", "cmake.define.HULLFT_CUDA=ON", "-C", f"build-dir={scratch}",
        ROOT, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip


def check(python: Path) -> None:
    # Away from the sources, so that the installed package is the one that is imported.
    with tempfile.TemporaryDirectory() as elsewhere:
        code = f"import os; os.chdir({elsewhere!r})\n{REGISTERED}"
        run(python, "-c", code, LD_BIND_NOW="1")
    run(python, ROOT / "tools" / "operator_smoke.py", LD_BIND_NOW="1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--torch", metavar="REQUIREMENT", help="such as torch==2.13.0")
    where.add_argument(
        "--python", type=Path, help="of an environment that has a CUDA torch"
    )
    parser.add_argument(
        "--work", type=Path, help="keeps the environment here for the next run"
    )
    options = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("check_cuda_build: nvcc is not on PATH")
    with tempfile.TemporaryDirectory() as temporary:
        home = (options.work or Path(temporary)) / "environment"
        python = options.python or make_environment(home, options.torch)
        install(python, Path(temporary) / "build")
        check(python)


if __name__ == "__main__":
    main()
