"""Every example runs and does what it says."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str) -> dict[str, Any]:
    result: dict[str, Any] = runpy.run_path(str(EXAMPLES / name))["main"]()
    return result


def test_no_example_is_left_out() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "fsdp2.py",
        "lora_llama.py",
        "plain_loop.py",
        "trainer.py",
    }


def test_a_plain_loop_reuses_gradients() -> None:
    found = run("plain_loop.py")
    assert found["passes"] < 20
    assert found["after"] < found["before"]


def test_lora_on_a_llama_adapts_and_is_undone() -> None:
    found = run("lora_llama.py")
    assert found["adapted"] < 0.9 * found["before"]
    assert found["restored"] == found["before"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trainer_takes_every_step_of_the_multiplicities() -> None:
    found = run("trainer.py")
    assert found["steps"] == 20
    assert found["rows"] < 20
    assert found["after"] < found["before"]


def test_two_processes_train_a_sharded_model() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(EXAMPLES / "fsdp2.py")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "2 processes, 20 steps with 11 gradients" in result.stdout
    before, after = re.findall(r"[\d.]+(?= before| after)", result.stdout)
    assert float(after) < float(before)
