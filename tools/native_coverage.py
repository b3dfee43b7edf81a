"""Line coverage of csrc/core and csrc/cpu by the operator tests, by gcov.

python tools/native_coverage.py [--only tests/test_fw_lmo.py ...]

Wants g++ and gcovr, and a Python with what tools/sanitized_tests.py asks for. Each instruction set
of this processor is run. Lines that only AVX-512 code has are left out where the processor has no
AVX-512, and it is said so. Fails below 95 % of lines; no line is excluded by a marker.
"""

import argparse
import os
import subprocess
import sys

from sanitized_tests import ROOT, Build, Sanitizer, python

TESTS = [
    "tests/properties",
    "tests/test_adam_replay.py",
    "tests/test_adam_rounding.py",
    "tests/test_fw_lmo.py",
    "tests/test_fw_select.py",
    "tests/test_fw_select_indexed.py",
    "tests/test_grad_accumulate.py",
    "tests/test_integerize.py",
    "tests/test_knn_select.py",
    "tests/test_memory_refused.py",
    "tests/test_replay_adam.py",
    "tests/test_replay_adam_errors.py",
    "tests/test_replay_adam_state.py",
    "tests/test_screening.py",
    "tests/test_selection_errors.py",
    "tests/test_sift_select.py",
    "tests/test_sift_select_errors.py",
]
# Threads count the same lines.
FLAGS = "-O0 --coverage -fprofile-update=atomic"
COVERAGE = Sanitizer(FLAGS, (), {}, TESTS, [], own_threads=False)
LEAST = 95
LEVELS = "from hullft_ops import _C\nprint(*_C.simd_levels())"


def leave_out(build: Build, instruction_set: str) -> None:
    """A unit that this processor cannot run, so that gcovr does not count its lines."""
    for note in build.objects.rglob(f"kernels_{instruction_set}.cpp.gc*"):
        note.unlink()
    print(f"{instruction_set} is not counted: this processor cannot run it", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", help="tests to run instead of the usual ones"
    )
    arguments = parser.parse_args()
    build = Build("coverage", COVERAGE)
    build.copy_sources()
    build.compile()
    for counts in build.objects.rglob("*.gcda"):
        counts.unlink()
    tests = python(
        build, COVERAGE, "", "import pytest\nsys.exit(pytest.main(sys.argv[1:]))",
        "-q", "-p", "no:cacheprovider", *(arguments.only or TESTS),
    )  # fmt: skip
    subprocess.run(
        tests, check=True, cwd=ROOT, env=os.environ | {"HYPOTHESIS_PROFILE": "few"}
    )
    levels = subprocess.run(
        python(build, COVERAGE, "", LEVELS), check=True, capture_output=True, text=True
    ).stdout.split()
    for unit in build.source.glob("csrc/cpu/simd/kernels_*.cpp"):
        instruction_set = unit.stem.removeprefix("kernels_")
        if instruction_set not in levels:
            leave_out(build, instruction_set)
    report = [
        "gcovr", "--root", build.source, "--object-directory", build.objects,
        "--filter", "csrc/core/", "--filter", "csrc/cpu/", "--no-markers",
        "--merge-mode-functions=merge-use-line-min",
        "--merge-lines",  # a line of a template counts once, whatever it is instantiated with
        "--fail-under-line", str(LEAST),
        build.objects / "CMakeFiles" / "_C.dir",  # without what CMake compiled to know the compiler
    ]  # fmt: skip
    finished = subprocess.run(
        [sys.executable, "-m", *map(str, report)], cwd=build.source
    )
    raise SystemExit(finished.returncode)


if __name__ == "__main__":
    main()
