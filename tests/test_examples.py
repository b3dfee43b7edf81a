"""Every example runs and does what it says."""

import os
import runpy
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
