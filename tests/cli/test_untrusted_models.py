"""No command runs code that ships with a model or an embedder, whatever a terminal would answer."""

import json
import shutil

import pytest

from command import hullft_ops

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import GPT2Config, GPT2LMHeadModel

class Config(GPT2Config):
    model_type = "shipped"

class Model(GPT2LMHeadModel):
    config_class = Config
"""
AUTO_MAP = {
    "AutoConfig": "shipped.Config",
    "AutoModel": "shipped.Model",
    "AutoModelForCausalLM": "shipped.Model",
}


def add_code(folder, mark):
    (folder / "shipped.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "shipped", "auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "has run"


@pytest.fixture
def inputs(store, corpus_file, tmp_path, monkeypatch):
    """What each command needs besides models."""
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    prompts = [corpus_file, "--prompt-column", "text"]
    return {
        "adapt": ["--store", store, "--prompt", "the cat sat on the red mat"],
        "answer": [*prompts, "--store", store, "--output", tmp_path / "out"],
        "demo": ["--corpus", corpus_file, "--limit", 2],
        "evaluate": ["--corpus", corpus_file, "--limit", 2],
        "index": [corpus_file, "--output", tmp_path / "out"],
        "train": [store, "--output", tmp_path / "out"],
    }


@pytest.mark.parametrize(
    ("kind", "commands"),
    [
        ("model", ["adapt", "answer", "demo", "evaluate", "train"]),
        ("embedder", ["adapt", "answer", "demo", "evaluate", "index"]),
    ],
)
def test_no_command_runs_code_that_ships_with(
    kind, commands, inputs, model_directory, mark, tmp_path
):
    folder = add_code(shutil.copytree(model_directory, tmp_path / kind), mark)
    for command in commands:
        result = hullft_ops(command, *inputs[command], f"--{kind}", folder)

        assert result.code == 2
        assert result.last.startswith(f"hullft-ops {command}: {kind} {folder}: ")
        assert "code" in result.last
        assert not mark.exists()
