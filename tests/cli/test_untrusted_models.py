"""No command runs code that ships with a model or an embedder, whatever a terminal would answer."""

import json
import shutil
import sys

import pytest

from hullft_ops.cli import main
from hullft_ops.ttft.embedding import load_embedder
from hullft_ops.ttft.store.datastore import Datastore

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
REFUSED = "it needs code that ships with it, which is not run"


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
def store(embedder_directory, tmp_path):
    texts = [f"the cat sat on mat {number}" for number in range(9)]
    Datastore.build(texts, load_embedder(str(embedder_directory)), tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def inputs(store, tmp_path, monkeypatch):
    """What each command needs besides models."""
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "texts.jsonl"
    rows = [{"text": 4 * f"the dog ran to park {number} "} for number in range(24)]
    corpus.write_text("\n".join(map(json.dumps, rows)))
    return {
        "adapt": ["--store", store, "--prompt", "the cat sat on the red mat"],
        "demo": ["--corpus", corpus, "--limit", 2],
        "evaluate": ["--corpus", corpus, "--limit", 2],
        "index": [corpus, "--output", tmp_path / "out"],
        "train": [store, "--output", tmp_path / "out"],
    }


def refusal(monkeypatch, capsys, *arguments) -> str:
    """The line that the command ends with."""
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    monkeypatch.setattr(sys, "argv", ["hullft-ops", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()

    assert end.value.code == 2

    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["adapt", "demo", "evaluate", "train"])
def test_no_command_runs_a_models_code(
    command, inputs, model_directory, mark, tmp_path, monkeypatch, capsys
):
    model = add_code(shutil.copytree(model_directory, tmp_path / "model"), mark)
    arguments = [command, *inputs[command], "--model", model]
    line = refusal(monkeypatch, capsys, *arguments)

    assert line == f"hullft-ops {command}: model {model}: {REFUSED}"
    assert not mark.exists()


@pytest.mark.parametrize("command", ["adapt", "demo", "evaluate", "index"])
def test_no_command_runs_an_embedders_code(
    command, inputs, model_directory, mark, tmp_path, monkeypatch, capsys
):
    embedder = add_code(shutil.copytree(model_directory, tmp_path / "embedder"), mark)
    arguments = [command, *inputs[command], "--embedder", embedder]
    line = refusal(monkeypatch, capsys, *arguments)

    assert line.startswith(f"hullft-ops {command}: embedder {embedder}: ")
    assert "code" in line
    assert not mark.exists()
