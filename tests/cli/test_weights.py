"""A checkpoint has the weights that its configuration says, or is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from typer.testing import CliRunner, Result

from hullft_ops.cli.app import app
from hullft_ops.ttft import Datastore, load_embedder
from hullft_ops.ttft.errors import InputError
from hullft_ops.ttft.evaluation.config import Config
from hullft_ops.ttft.model.loading import load_model
from hullft_ops.ttft.scale import evaluation as workers
from hullft_ops.ttft.scale.cluster import found_anywhere

SIZES: dict[str, Any] = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 24}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config)


def llama(*, tied: bool) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


CAUSAL: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "llama": lambda: llama(tied=False),
    "llama tied": lambda: llama(tied=True),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.tensor([[5, 9, 2]])).logits
    return found


@pytest.fixture
def folder(model_directory: Path, tmp_path: Path) -> Path:
    """One with a tokenizer, for other weights and another configuration."""
    return Path(shutil.copytree(model_directory, tmp_path / "model"))


def loaded(folder: Path) -> torch.Tensor:
    return logits(load_model(str(folder), torch.device("cpu"))[0])


@pytest.mark.parametrize("kind", CAUSAL)
def test_weights_that_are_tied_are_not_missing(kind: str, folder: Path) -> None:
    model = CAUSAL[kind]()
    model.save_pretrained(folder)
    assert torch.equal(loaded(folder), logits(model))


def test_nor_are_those_of_a_checkpoint_in_parts(folder: Path) -> None:
    model = llama(tied=False)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(loaded(folder), logits(model))


def test_nor_is_the_head_that_a_base_model_does_without(folder: Path) -> None:
    model = gpt2()
    model.base_model.save_pretrained(folder)
    assert torch.equal(loaded(folder), logits(model))


def test_masks_of_old_checkpoints_are_not_unexpected(folder: Path) -> None:
    model = gpt2()
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {
        f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in (0, 1)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(loaded(folder), logits(model))


def test_a_folder_of_adapters_is_loaded_around_its_base(
    folder: Path, tmp_path: Path
) -> None:
    base = llama(tied=False)
    base.save_pretrained(folder)
    adapters = tmp_path / "adapters"
    lora = LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj"]
    )
    base.name_or_path = str(folder)
    model = get_peft_model(base, lora)
    model.save_pretrained(adapters)
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, adapters)
    assert torch.allclose(loaded(adapters), logits(model))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_named(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=re.escape(f"model {folder}: {name}: ")):
        load_model(folder)


def test_the_shipped_model_is_whole() -> None:
    load_model(None, torch.device("cpu"))


@pytest.fixture
def lying(folder: Path) -> Callable[..., Path]:
    def lying(**entries: object) -> Path:
        """One layer of GPT-2, under a configuration with other entries."""
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))
        return folder

    return lying


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            {"n_layer": 3},
            "24 missing (transformer.h.1.attn.c_attn.bias, transformer.h.1.attn.c_attn.weight, "
            "transformer.h.1.attn.c_proj.bias, ...)",
        ),
        ({"tie_word_embeddings": False}, "1 missing (lm_head.weight)"),
        (
            {"n_layer": 0},
            # Of a name that ends in "attn.bias" transformers thinks that it is a mask.
            "11 unexpected (transformer.h.0.attn.c_attn.weight, transformer.h.0.attn.c_proj.bias, "
            "transformer.h.0.attn.c_proj.weight, ...)",
        ),
        ({"n_embd": 32}, "model "),
    ],
)
def test_a_configuration_of_other_weights_is_refused(
    entries: dict[str, object], said: str, lying: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match="model ") as caught:
        loaded(lying(**entries))
    assert said in str(caught.value)


@pytest.fixture
def store(embedder_directory: Path, tmp_path: Path) -> Path:
    texts = [f"the cat sat on mat {number}" for number in range(9)]
    path = tmp_path / "store"
    Datastore.build(texts, load_embedder(str(embedder_directory)), path, progress=False)
    return path


def invoke(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, [command, *map(str, arguments)])


@pytest.mark.parametrize("command", ["adapt", "demo", "evaluate", "tune"])
def test_every_command_refuses_it_unless_told_otherwise(
    command: str,
    lying: Callable[..., Path],
    store: Path,
    corpus_file: Path,
    embedder_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["--model", lying(n_layer=2), "--embedder", embedder_directory, "--steps", 2]
    if command == "adapt":
        own += ["--store", store, "--prompt", "the cat sat on the red mat"]
    else:
        own += [
            "--corpus",
            corpus_file,
            "--prompts" if command == "demo" else "--limit",
            1,
        ]
    refused = invoke(command, *own)
    assert refused.exit_code == 2, refused.output
    [line] = [
        line for line in refused.stderr.splitlines() if line.startswith("hullft-ops")
    ]
    assert "12 missing (transformer.h.1.attn.c_attn.bias, " in line
    assert line.endswith(
        "; allow_missing_weights=True, or --allow-missing-weights, loads it anyway"
    )
    allowed = invoke(command, *own, "--allow-missing-weights")
    assert allowed.exit_code == 0, allowed.output
    if command == "tune":
        assert (
            json.loads(Path("tuned.json").read_text())["allow_missing_weights"] is True
        )


@pytest.mark.parametrize("allow", [False, True])
def test_workers_of_ray_do_as_they_are_configured(
    allow: bool, lying: Callable[..., Path], store: Path
) -> None:
    config = Config(model=str(lying(n_layer=2)), allow_missing_weights=allow)
    said = "another model, tokenizer, datastore" if allow else "12 missing"
    with pytest.raises(ValueError, match=said):
        workers.load_evaluator(config, store, "another run", "cpu")


def test_workers_of_ray_find_a_gguf_file_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.gguf").touch()
    assert found_anywhere("tiny.gguf") == str(tmp_path / "tiny.gguf")
