"""Which CUDA compilers and architectures the build takes: what cmake/cuda.cmake says of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEARCHED = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool, path=SEARCHED) for tool in ("cmake", "ninja")),
    reason="needs cmake and ninja",
)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")

PROJECT = f"""
cmake_minimum_required(VERSION 3.26)
project(kernels LANGUAGES CXX)
include({ROOT}/cmake/cuda.cmake)
"""

# Says that it is 11.5, and compiles for 7.5 where an older compiler is asked for what this one
# does not know.
OLD_NVCC = f"""#!/bin/bash
arguments=()
for argument in "$@"; do
  case "$argument" in *CMakeCUDACompilerId.cu)
    sed 's/DEC(__CUDACC_VER_MAJOR__)/DEC(11)/; s/DEC(__CUDACC_VER_MINOR__)/DEC(5)/' \\
      "$argument" > "$PWD/other_id.cu"
    arguments+=("-I${{argument%/*}}")
    argument="$PWD/other_id.cu";;
  esac
  arguments+=("${{argument//_52/_75}}")
done
exec {NVCC} "${{arguments[@]}}"
"""

# Whether the build asks for a CUDA compiler shows, at no cost.
BROKEN_NVCC = "#!/bin/sh\nexit 1\n"


def configure(
    folder: Path, nvcc: str | None = None, **settings: str
) -> tuple[int, str]:
    """The exit status and what CMake says, on one line. A folder keeps what CMake has found out
    about its compilers."""
    (folder / "CMakeLists.txt").write_text(PROJECT)
    command = ["cmake", "-S", str(folder), "-B", str(folder / "build"), "-G", "Ninja"]
    command += [f"-D{name}={value}" for name, value in settings.items()]
    environment = os.environ | {"PATH": SEARCHED}
    if nvcc is not None:
        wrapper = folder / "nvcc"
        wrapper.write_text(nvcc)
        wrapper.chmod(0o755)
        environment["CUDACXX"] = str(wrapper)

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@needs_nvcc
def test_an_old_compiler_is_an_error(tmp_path: Path) -> None:
    status, output = configure(tmp_path, OLD_NVCC, HULLFT_CUDA="ON")

    assert status != 0
    assert "hullft_ops: the CUDA kernels want nvcc 12.1 or later" in output
    assert f"{tmp_path}/nvcc is 11.5" in output
    assert "HULLFT_CUDA=OFF" in output


@needs_nvcc
def test_architectures_without_the_instructions_are_refused(tmp_path: Path) -> None:
    for architectures, old in (
        ("75", "75"),
        ("90-real;70-virtual", "70-virtual"),
        ("all-major", "all-major"),
    ):
        status, output = configure(
            tmp_path,
            HULLFT_CUDA="ON",
            CMAKE_CUDA_COMPILER=str(NVCC),  # CMake then looks for none
            HULLFT_CUDA_ARCHITECTURES=architectures,
        )

        assert status != 0
        assert "the CUDA kernels want architectures of at least 80" in output
        assert f"({old})" in output


def test_without_a_gpu_the_kernels_are_compiled_only_if_asked_for(
    tmp_path: Path,
) -> None:
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    status, output = configure(tmp_path, BROKEN_NVCC)

    assert status == 0
    assert ("for the CPU only: no GPU is visible" in output) == (not has_gpu)

    status, output = configure(tmp_path, BROKEN_NVCC, HULLFT_CUDA="ON")

    assert status != 0
    assert "there is no working CUDA compiler" in output
