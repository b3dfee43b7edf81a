"""The quotients that several Adam steps take by multiplication, for all divisors and estimates."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hullft_ops import _C

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def options_of_the_build() -> list[str]:
    """What CMakeLists.txt gives the unit of AVX-512, beside what it gives all vector units."""
    lists = (ROOT / "CMakeLists.txt").read_text()
    found = re.findall(
        r"SOURCE (?:csrc/cpu/simd/kernels_avx512\.cpp|\$\{HULLFT_VECTOR_UNITS\}) "
        r"APPEND PROPERTY COMPILE_OPTIONS([^)]*)\)",
        lists,
    )

    assert len(found) == 2

    return " ".join(found).split()


def prove(folder: Path) -> dict[str, tuple[int, int]]:
    """For each way of rounding: reciprocals that are not the nearest, and wrong quotients."""
    compiler = os.environ.get("CXX") or shutil.which("c++")

    assert compiler, "no C++ compiler"

    program = folder / "quotient_proof"
    subprocess.run(
        [compiler, "-std=c++20", "-O3", "-pthread", *options_of_the_build(),
         f"-I{ROOT / 'csrc'}", str(HERE / "quotient_proof.cpp"), "-o", str(program)],
        check=True,
    )  # fmt: skip
    printed = subprocess.run(
        [program], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split() for line in printed.splitlines())
    return {name: (int(others), int(wrong)) for name, others, wrong in rows}


@pytest.mark.skipif("avx512" not in _C.simd_levels(), reason="needs AVX-512")
def test_quotients_are_those_of_the_division(tmp_path: Path) -> None:
    proof = prove(tmp_path)
    reciprocals, wrong = proof["upwards"]

    assert reciprocals > 0
    assert wrong == 0
    assert proof["cuda"] == (4, 0)
    assert proof["roots"][1] == 88  # of 90 million: see csrc/core/from_estimates.h
    # Rounding the other way is wrong now and then: the program tells.
    assert proof["nearest"][1] > 0
