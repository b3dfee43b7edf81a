"""``--device`` of the commands that load a model; no GPU is needed to be asked for one."""

import re
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel
from typer.testing import CliRunner

from hullft_ops.cli.app import app
from hullft_ops.ttft.model.loading import checked_device, load_model

COMMANDS = {
    "adapt": ["--prompt", "the cat sat on the red mat"],
    "demo": [],
    "evaluate": [],
    "tune": [],
}


@pytest.fixture(autouse=True)
def _one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device gpu: must be cpu, cuda or cuda:N"),
        ("meta", "device meta: must be cpu, cuda or cuda:N"),
        (
            "cuda:1",
            rf"device cuda:1: torch {re.escape(torch.__version__)} finds 1 CUDA devices",
        ),
    ],
)
def test_an_unknown_or_absent_device_is_one_line(
    command: str,
    device: str,
    message: str,
    model_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        command,
        *COMMANDS[command],
        "--model",
        str(model_directory),
        "--device",
        device,
    ]
    result = CliRunner().invoke(
        app, [*arguments, *(["--store", "s"] if command == "adapt" else [])]
    )
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert re.fullmatch(f"hullft-ops {command}: {message}", line)
    assert list(tmp_path.iterdir()) == []


def test_workers_of_ray_have_their_own_option(tmp_path: Path) -> None:
    arguments = ["evaluate", "--engine", "ray", "--device", "cuda"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert (
        "--device needs --engine process; with Ray, use --gpus-per-worker"
        in result.stderr
    )


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0"])
def test_the_model_is_moved(
    device: str, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = []
    monkeypatch.setattr(
        GPT2LMHeadModel, "to", lambda self, device: moves.append(device)
    )
    load_model(str(model_directory), checked_device(device))
    assert moves == [torch.device(device)]
