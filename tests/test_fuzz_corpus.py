"""Replays the kept inputs of tests/fuzz, and bytes at random: any may raise, none may crash."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
DRAWN = 400


@pytest.mark.cpu_only("meta and sparse tensors, other devices")
def test_no_input_crashes() -> None:
    replay = subprocess.run(
        [sys.executable, FUZZ / "replay.py", str(DRAWN)], capture_output=True, text=True
    )

    assert replay.returncode == 0, replay.stderr[-3000:]

    outcomes = Counter(replay.stdout.split())
    kept = len(list((FUZZ / "corpus").iterdir()))

    assert kept >= 20
    assert outcomes.total() == kept + DRAWN
    assert outcomes["returned"] >= 50
    assert {"ValueError", "TypeError", "RuntimeError"} <= outcomes.keys()
