"""``hullft-ops train``."""

import json
import sys

import pytest
from peft import PeftModel

from hullft_ops.cli import main
from hullft_ops.ttft.embedding import load_embedder
from hullft_ops.ttft.models.loading import load_model
from hullft_ops.ttft.store.datastore import Datastore


@pytest.fixture
def store(corpus_file, embedder_directory, tmp_path):
    lines = corpus_file.read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines[14:30]]
    embedder = load_embedder(str(embedder_directory))
    Datastore.build(texts, embedder, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def train(store, model_directory, tmp_path, monkeypatch, capsys):
    def train(*arguments):
        command = ["hullft-ops", "train", store, "--output", tmp_path / "adapter"]
        command += ["--model", model_directory, *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr()

    return train


def test_it_makes_an_adapter_for_peft(train, store, model_directory, tmp_path):
    status, printed = train("--rank", 2, "--max-length", 32)
    assert status == 0

    path = tmp_path / "adapter"
    assert printed.out.splitlines()[-1] == f"an adapter of rank 2 is in {path}"

    model, _ = load_model(model_directory)
    adapted = PeftModel.from_pretrained(model, path)
    config = adapted.peft_config["default"]

    assert config.r == 2
    assert config.base_model_name_or_path == str(model_directory)
    assert sorted(tmp_path.iterdir()) == [path, store]


@pytest.mark.filterwarnings("error::FutureWarning")
def test_no_warning_of_a_library_leaks(train):
    assert train("--rank", 2, "--max-length", 32)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rank", 0], "--rank must be greater than 0"),
        (["--max-length", 300], "max_length is 300, the model's window is 256"),
        (["--model", "./nowhere"], "model ./nowhere: no such folder"),
        (["--device", "tpu"], "device tpu: must be cpu, cuda or cuda:N"),
    ],
)
def test_what_cannot_be_trained_ends_with_2(train, tmp_path, arguments, reason):
    status, printed = train(*arguments)
    assert status == 2
    assert reason in printed.err.splitlines()[-1]
    assert not (tmp_path / "adapter").exists()
