"""Which CUDA compilers and architectures the build takes: what cmake/cuda.cmake says of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SEARCHED = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(
    NVCC is None
    or any(shutil.which(tool, path=SEARCHED) is None for tool in ("cmake", "ninja")),
    reason="needs nvcc, cmake and ninja",
)

PROJECT = f"""
cmake_minimum_required(VERSION 3.26)
project(kernels LANGUAGES CXX)
include({ROOT}/cmake/cuda.cmake)
message(STATUS "configured with CUDA [${{HULLFT_CUDA_VERSION}}]")
"""

# Compiles another text in place of one of CMake's own files, and 7.5 where an older compiler is
# asked for what this one does not know.
WRAPPER = """#!/bin/bash
arguments=()
for argument in "$@"; do
  case "$argument" in *{file})
    sed '{edit}' "$argument" > "$PWD/other_{file}"
    arguments+=("-I${{argument%/*}}")
    argument="$PWD/other_{file}";;
  esac
  arguments+=("${{argument//_52/_75}}")
done
exec {nvcc} "${{arguments[@]}}"
"""
VERSION = "s/DEC(__CUDACC_VER_MAJOR__)/DEC(11)/; s/DEC(__CUDACC_VER_MINOR__)/DEC(5)/"
OLD_NVCC = WRAPPER.format(file="CMakeCUDACompilerId.cu", edit=VERSION, nvcc=NVCC)
CARDS = 's/!cmakeCompilerCUDAArch()/std::printf("75") != 2/'
NVCC_BESIDE_A_T4 = WRAPPER.format(file="CMakeCUDACompilerABI.cu", edit=CARDS, nvcc=NVCC)


def configure(
    folder: Path, nvcc: str | None = None, **settings: str
) -> tuple[int, str]:
    """The exit status and what CMake says, on one line."""
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


def test_it_says_what_it_compiles_and_how_to_leave_it_out(tmp_path: Path) -> None:
    _, said = configure(tmp_path)
    assert "hullft_ops: compiling CUDA kernels with nvcc " in said
    assert "pip install -C cmake.define.HULLFT_CUDA=OFF" in said
    _, said = configure(tmp_path, HULLFT_CUDA="OFF")
    assert "hullft_ops: compiling for the CPU only (HULLFT_CUDA=OFF)" in said


def test_an_old_compiler_is_left_out_and_is_an_error_where_it_must_be_used(
    tmp_path: Path,
) -> None:
    status, said = configure(tmp_path, OLD_NVCC)
    assert status == 0, said
    assert "hullft_ops: the CUDA kernels want nvcc 12.1 or later" in said
    assert f"{tmp_path}/nvcc is 11.5" in said
    assert "configured with CUDA []" in said
    status, said = configure(tmp_path, OLD_NVCC, HULLFT_CUDA="ON")
    assert status != 0
    assert "HULLFT_CUDA=ON cannot be had with it" in said


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where CMake looks for the compilers once."""
    return tmp_path_factory.mktemp("configured")


@pytest.mark.parametrize("architectures", ["75", "90-real;70-virtual", "all-major"])
def test_architectures_without_the_instructions_are_refused(
    configured: Path, architectures: str
) -> None:
    status, said = configure(configured, HULLFT_CUDA_ARCHITECTURES=architectures)
    assert status != 0
    assert "hullft_ops: the CUDA kernels want architectures of at least 80" in said


def test_a_card_without_the_instructions_is_refused(tmp_path: Path) -> None:
    status, said = configure(
        tmp_path, NVCC_BESIDE_A_T4, HULLFT_CUDA_ARCHITECTURES="native"
    )
    assert status != 0
    assert "HULLFT_CUDA_ARCHITECTURES asks for 75 (native)" in said
