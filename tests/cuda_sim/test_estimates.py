"""The program that tries the hardware's estimates on a GPU: here a sample, with the simulator's."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cuda_sim import build

ESTIMATES = "core/from_estimates.h"


@pytest.mark.parametrize(
    ("header", "right", "mistake", "wrong"),
    [
        (ESTIMATES, "", "", None),
        (ESTIMATES, "i < 2", "i < 0", "quotients"),
        (ESTIMATES, "product(0.5f, y)", "product(0.4f, y)", "divisors_with_eps_1e-8"),
        ("cuda/fw_warp.cuh", "S(x / y)", "S(x / y * 1.000001)", "quotients_of_a_step"),
    ],
)
def test_wrong_roots_and_quotients_are_counted(
    tmp_path: Path, header: str, right: str, mistake: str, wrong: str | None
) -> None:
    csrc = tmp_path / "csrc"
    shutil.copytree(build.CSRC, csrc)
    text = (csrc / header).read_text()

    assert right in text

    (csrc / header).write_text(text.replace(right, mistake) if right else text)
    program = build.build_estimates(csrc, tmp_path)
    printed = subprocess.check_output([program], text=True)
    counts = {line.split()[0]: int(line.split()[1]) for line in printed.splitlines()}

    assert len(counts) == 8

    if wrong is None:
        assert set(counts.values()) == {0}
    else:
        assert counts[wrong] > 0
