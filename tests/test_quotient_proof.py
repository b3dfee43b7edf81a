"""The quotients that several Adam steps take by multiplication, for all divisors and estimates."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hullft_ops import _C

TESTS = Path(__file__).parent
AS_IN_THE_BUILD = [
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
    *("-mavx2", "-mfma", "-mf16c", "-ffp-contract=fast"),
]


def prove(folder: Path) -> dict[str, tuple[int, int]]:
    """For each way of rounding: reciprocals that are not the nearest, and wrong quotients."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    assert compiler, "no C++ compiler"
    program = folder / "quotient_proof"
    subprocess.run(
        [compiler, "-std=c++20", "-O2", "-pthread", *AS_IN_THE_BUILD, f"-I{TESTS.parent / 'csrc'}",
         str(TESTS / "quotient_proof.cpp"), "-o", str(program)],
        check=True,
    )  # fmt: skip
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in printed.splitlines())
    return {name: (int(others), int(wrong)) for name, others, wrong in rows}


@pytest.mark.skipif("avx512" not in _C.simd_levels(), reason="needs AVX-512")
def test_quotients_are_those_of_the_division(tmp_path: Path) -> None:
    proof = prove(tmp_path)
    reciprocals, wrong = proof["upwards"]
    assert reciprocals > 0
    assert wrong == 0
    # Rounding the other way is wrong now and then: the program tells.
    assert proof["nearest"][1] > 0
