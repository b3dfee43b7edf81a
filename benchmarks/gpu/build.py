"""Builds the package for one card and installs it. Runs before the package can be imported."""

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec

import torch


def command(capability: tuple[int, int]) -> list[str]:
    """The command of pip, without an index.

    Building machine code only for this card takes a third of the time. CMake's "native" would run a
    program to find the card, and guess another card if that fails. CMake keeps the choice for the
    next build in a folder, so this build has its own folder.
    """
    major, minor = capability
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-v",
        "--no-build-isolation",
        "--no-deps",
    ]
    pip += ["--no-index", "--disable-pip-version-check", "--force-reinstall", "."]
    for setting in (
        "build-dir=build/gpu_check",
        "cmake.define.HULLFT_CUDA=ON",
        f"cmake.define.HULLFT_CUDA_ARCHITECTURES={major}{minor}-real",
    ):
        pip += ["-C", setting]
    return pip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.build", description=__doc__
    )
    parser.add_argument("--device", default="cuda", help="cuda (the default) or cuda:N")
    device = torch.device(parser.parse_args().device)
    install = command(torch.cuda.get_device_capability(device))
    if find_spec("pip") is None:
        subprocess.run([sys.executable, "-m", "ensurepip"], check=True)
    print(" ".join(install), flush=True)
    # A system's Python would refuse. This replaces no package of the system.
    environment = os.environ | {"PIP_BREAK_SYSTEM_PACKAGES": "1"}
    return subprocess.run(install, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
