"""Runs checks of cases.py on one library in a process of its own.

A library that may corrupt memory, hang, or needs AddressSanitizer's runtime loaded first must not
share the test process.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def _address_sanitizer() -> dict[str, str]:
    def library(name: str) -> str:
        done = subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def run_cases(library: Path, kind: str, cases: list[str], seed: int, timeout: float) -> str:
    """What went wrong, or an empty string."""
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in paths if p))
    if kind == "asan":
        environment |= _address_sanitizer()
    command = [sys.executable, "-m", "cuda_sim.worker", str(library), str(seed), *cases]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end after {timeout} s"
    if done.returncode == 0:
        return ""
    return done.stdout + done.stderr


def main() -> None:
    from cuda_sim.cases import CASES
    from cuda_sim.library import Library

    library, seed = Library(Path(sys.argv[1])), int(sys.argv[2])
    for name in sys.argv[3:]:
        CASES[name](library, seed)


if __name__ == "__main__":
    main()
