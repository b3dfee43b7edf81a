"""The simulator's own test, in every build: what must pass, and what must be reported."""

import subprocess
from pathlib import Path

import pytest

from cuda_sim import build


@pytest.mark.parametrize("kind", build.KINDS)
def test_selftest(kind: str, tmp_path: Path) -> None:
    program = build.build_selftest(kind, tmp_path)
    done = subprocess.run(
        [program], capture_output=True, text=True, check=False, timeout=120
    )

    assert (done.returncode, done.stdout) == (0, "selftest passed\n"), (
        done.stdout + done.stderr
    )
