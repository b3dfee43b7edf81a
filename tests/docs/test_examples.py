"""Every example runs and does what it says."""

import os
import re
import runpy
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ["HF_HUB_OFFLINE"] = "1"

import matplotlib.image
import pytest
import torch
import torch.distributed as dist
from transformers import TrainingArguments

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, **arguments: object) -> dict[str, Any]:
    result: dict[str, Any] = runpy.run_path(str(EXAMPLES / name))["main"](**arguments)
    return result


def test_a_plain_loop_reuses_gradients() -> None:
    found = run("plain_loop.py")

    assert found["passes"] < 20
    assert found["after"] < found["before"]


def test_lora_on_a_llama_adapts_and_is_undone() -> None:
    found = run("lora_llama.py")

    assert found["adapted"] < 0.9 * found["before"]
    assert found["restored"] == found["before"]


def test_a_plot_shows_what_was_selected(tmp_path: Path) -> None:
    found = run("plot_adaptation.py", output=tmp_path / "adaptation.png")

    assert matplotlib.image.imread(tmp_path / "adaptation.png").shape == (1500, 1200, 4)
    assert 1 < found["selected"] <= found["passes"] < 50


def test_a_knn_language_model_lowers_the_bits_of_the_answer() -> None:
    bits = run("knn_lm.py")

    assert bits["kNN-LM"] < bits["nothing"]
    assert bits["both"] < bits["n-grams"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trainer_takes_every_step_of_the_multiplicities() -> None:
    found = run("trainer.py")

    assert found["steps"] == 20
    assert found["rows"] < 20
    assert found["after"] < found["before"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "must be 1, got 2 rows a step"),
        ({"per_device_train_batch_size": 2}, "must be 1, got 2 rows a step"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be False"),
    ],
)
def test_a_trainer_refuses_what_loses_multiplicities(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    plain = {"per_device_train_batch_size": 1, "remove_unused_columns": False}
    args = TrainingArguments(str(tmp_path), **plain | options)
    trainer = runpy.run_path(str(EXAMPLES / "trainer.py"))["ReplayTrainer"]

    with pytest.raises(ValueError, match=message):
        trainer(model=torch.nn.Linear(1, 1), args=args)


def sharded(rank: int, folder: Path) -> None:
    """One of the processes that torchrun would start; they meet in a file, not at a port."""
    meet = partial(
        dist.init_process_group,
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=2,
    )
    with (
        patch.object(dist, "init_process_group", meet),
        (folder / f"{rank}.txt").open("w") as printed,
        redirect_stdout(printed),
    ):
        run("fsdp2.py")


def test_two_processes_train_a_sharded_model(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        sharded, (tmp_path,), nprocs=2, start_method="fork"
    )
    printed = (tmp_path / "0.txt").read_text()

    assert "2 processes, 20 steps with 11 gradients" in printed

    before, after = re.findall(r"[\d.]+(?= before| after)", printed)

    assert float(after) < float(before)
