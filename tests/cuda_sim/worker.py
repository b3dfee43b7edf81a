"""Runs checks of cases.py on one library in a process of its own.

A library that may corrupt memory, hang, or needs AddressSanitizer's runtime loaded first must not
share the test process. A process that has imported everything waits for requests, a line of JSON
each, and forks for each one: importing torch takes longer than most checks.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Self


def _address_sanitizer() -> dict[str, str]:
    def library(name: str) -> str:
        command = ["g++", f"-print-file-name={name}"]
        return subprocess.check_output(command, text=True).strip()

    return {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        # Frames that are kept after their return would take a second stack for each fiber.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


class Workers:
    """The waiting processes: one with AddressSanitizer's runtime, one without."""

    def __init__(self) -> None:
        self._waiting: dict[bool, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._waiting.values():
            process.communicate()

    def _start(self, asan: bool) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        if asan:
            environment |= _address_sanitizer()

        return subprocess.Popen(
            [sys.executable, "-m", "cuda_sim.worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run_case(
        self, library: Path, kind: str, case: str, seed: int, timeout: int
    ) -> str:
        """What went wrong, or an empty string; ``timeout`` in seconds."""
        asan = kind == "asan"
        if asan not in self._waiting:
            self._waiting[asan] = self._start(asan)

        process = self._waiting[asan]

        assert process.stdin is not None
        assert process.stdout is not None

        request = {
            "library": str(library),
            "case": case,
            "seed": seed,
            "timeout": timeout,
        }
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended with status {process.wait()}")

        report: str = json.loads(answer)
        return report


def _check(library: str, case: str, seed: int) -> None:
    from cuda_sim.cases import CASES
    from cuda_sim.library import Library

    CASES[case](Library(Path(library)), seed)


def _in_child(log: int, library: str, case: str, seed: int, timeout: int) -> None:
    """Never returns; the alarm's default action ends even a loop in compiled code."""
    signal.alarm(timeout)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        _check(library, case, seed)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _answer(library: str, case: str, seed: int, timeout: int) -> str:
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            _in_child(log.fileno(), library, case, seed, timeout)

        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log.seek(0)
        report = log.read().decode(errors="replace")

    if status == 0:
        return ""

    if status == -signal.SIGALRM:
        return f"no end after {timeout} s\n{report}"

    return f"{report}status {status}"


def main() -> None:
    import torch

    import_module("cuda_sim.cases")  # once, for every child
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
