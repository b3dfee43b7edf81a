"""One LoRA for a datastore: trained, killed, read by PEFT and added to a model's weights."""

import copy
import json
import os
import random
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from forked import forked, status_of
from hullft_ops.ttft import adapter
from hullft_ops.ttft.adapter import (
    AdapterConfig,
    add_adapter,
    lora_differences,
    train_adapter,
)
from hullft_ops.ttft.errors import InputError, NonFiniteLossError
from hullft_ops.ttft.identity import model_identity

WEIGHTS = "adapter_model.safetensors"
RATE = 3e-2


@pytest.fixture
def store(texts):
    # The first has no next token to predict.
    return SimpleNamespace(texts=["a", *texts[:12]], identity="store")


@pytest.fixture
def train(gpt2, tokenizer, store, tmp_path):
    def train(name="adapter", **options):
        options = {"rank": 4, "lr": RATE} | options
        return train_adapter(gpt2, tokenizer, store, tmp_path / name, **options)

    return train


def loss(model, tokenizer, texts):
    total = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:32]])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item()
    return total


@pytest.mark.filterwarnings("error:Could not find a config file")
@pytest.mark.parametrize(
    ("model", "options"),
    [("gpt2", {}), ("llama", {"dtype": "bfloat16", "batch_size": 4, "epochs": 2})],
    indirect=["model"],
)
def test_peft_loads_an_adapter_that_fits_the_passages(
    model, tokenizer, store, texts, tmp_path, options
):
    store.texts = ["a", *texts[:24]]
    model.name_or_path = "the name of the user"
    before = loss(model, tokenizer, store.texts[1:])
    identity, modules = model_identity(model), list(model.modules())
    path = tmp_path / "adapter"

    assert (
        train_adapter(model, tokenizer, store, path, rank=4, lr=RATE, **options) == path
    )
    assert model_identity(model) == identity
    assert list(model.modules()) == modules
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]

    config = json.loads((path / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == "the name of the user"
    assert config["r"] == 4

    adapted = PeftModel.from_pretrained(model, path)
    assert loss(adapted, tokenizer, store.texts[1:]) < 0.99 * before


def test_a_killed_training_goes_on_and_ends_with_the_same_bits(
    gpt2, tokenizer, store, tmp_path, monkeypatch, pytestconfig
):
    monkeypatch.setattr(adapter, "_SAVE_STEPS", 7)

    def train(name):
        train_adapter(gpt2, tokenizer, store, tmp_path / name, rank=4, epochs=2)

    began = time.monotonic()
    train("whole")
    seconds = time.monotonic() - began
    expected = load_file(tmp_path / "whole" / WEIGHTS)
    kills = 0
    while kills < pytestconfig.getoption("kills"):
        child = forked(lambda: train("adapter"), seconds=100)
        time.sleep(random.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        kills += status_of(child) == -signal.SIGKILL
        if (tmp_path / "adapter").exists():
            # It appears whole.
            adapted = load_file(tmp_path / "adapter" / WEIGHTS)
            assert all(torch.equal(adapted[name], expected[name]) for name in expected)

            shutil.rmtree(tmp_path / "adapter")

    train("adapter")
    adapted = load_file(tmp_path / "adapter" / WEIGHTS)

    assert all(torch.equal(adapted[name], expected[name]) for name in expected)
    assert not (tmp_path / ".adapter.training").exists()


def test_it_goes_on_from_the_last_checkpoint(train, store, monkeypatch):
    monkeypatch.setattr(adapter, "_SAVE_STEPS", 4)
    batches, pad = [], adapter._padded

    def padded(rows):
        batches.append(rows)
        if len(batches) == 11:
            raise KeyboardInterrupt
        return pad(rows)

    monkeypatch.setattr(adapter, "_padded", padded)
    with pytest.raises(KeyboardInterrupt):
        train()

    train()
    # 12 passages, and 8 steps until the second checkpoint.
    assert len(batches) == 11 + 12 - 8


def test_a_checkpoint_that_is_cut_off_is_passed_over(tmp_path):
    for step, content in [(7, "{}"), (14, "{}"), (21, '{"epoch": '), (28, None)]:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if content is not None:
            (folder / "trainer_state.json").write_text(content)
            os.utime(folder / "trainer_state.json", (step, step))

    assert adapter._last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-14")
    assert adapter._last_checkpoint(tmp_path / "nowhere") is None


def test_checkpoints_of_other_options_are_not_continued(train, store, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(adapter, "new_folder", full)
        with pytest.raises(OSError, match="No space left"):
            train()

    with pytest.raises(ValueError, match="has checkpoints of other options, or of"):
        train(seed=8)

    store.identity = "another"
    with pytest.raises(ValueError, match="has checkpoints of other options, or of"):
        train()

    store.identity = "store"
    train()


def test_without_a_checkpoint_other_options_begin_anew(train, store, tmp_path):
    store.texts, texts = ["a", ""], store.texts
    with pytest.raises(ValueError, match="store has no passage of 2 tokens"):
        train()

    store.texts = texts
    train(rank=2)

    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_a_loss_of_nan_leaves_nothing(train, tmp_path):
    with pytest.raises(NonFiniteLossError, match="a loss is not finite: lower lr"):
        train(lr=1e30)

    assert not list(tmp_path.iterdir())


def test_users_files_stay(train, tmp_path):
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "thesis.txt").write_text("mine")

    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="adapter"):
            train(overwrite=overwrite)

    assert [entry.name for entry in path.iterdir()] == ["thesis.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_is_replaced_only_when_asked(train):
    path = train()
    first = (path / WEIGHTS).read_bytes()
    with pytest.raises(FileExistsError, match="adapter"):
        train(seed=1)

    assert (path / WEIGHTS).read_bytes() == first

    train(seed=1, overwrite=True)
    assert (path / WEIGHTS).read_bytes() != first


def test_what_cannot_be_trained_is_refused_before_the_work(
    gpt2, tokenizer, store, tmp_path
):
    path = tmp_path / "adapter"
    bert = BertLMHeadModel(BertConfig(vocab_size=320, num_hidden_layers=1))
    with pytest.raises(ValueError, match="must be a causal language model"):
        train_adapter(bert, tokenizer, store, path)
    with pytest.raises(ValueError, match="max_length is 99, the model's context is 32"):
        train_adapter(gpt2, tokenizer, store, path, max_length=99)
    with pytest.raises(ValueError, match="lr must be above 0, got nan"):
        train_adapter(gpt2, tokenizer, store, path, lr=float("nan"))

    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(ValueError, match="must have no adapters, got a PEFT model"):
        train_adapter(get_peft_model(gpt2, lora), tokenizer, store, path)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["rank", "epochs", "batch_size"])
def test_options_are_checked_when_they_are_set(name):
    with pytest.raises(ValueError, match=f"AdapterConfig: {name} must be in 1"):
        AdapterConfig(**{name: 0})
    with pytest.raises(ValueError, match="dtype must be bfloat16 or None, got 'half'"):
        AdapterConfig(dtype="half")


def saved(model, path, **options):
    """A LoRA of random values, as PEFT saves it."""
    is_gpt2 = hasattr(model, "transformer")
    layers = ["c_attn", "c_fc"] if is_gpt2 else ["q_proj", "down_proj"]
    settings = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": layers,
        "fan_in_fan_out": is_gpt2,
        "init_lora_weights": False,
    }
    config = LoraConfig(**(settings | options))
    get_peft_model(model, config).save_pretrained(path)
    return path


def test_adding_it_equals_pefts_merged_weights(model, tmp_path):
    base = copy.deepcopy(model)
    path = saved(copy.deepcopy(model), tmp_path / "adapter")
    merged = PeftModel.from_pretrained(base, path).merge_and_unload().state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    differences = lora_differences(path, model)
    add_adapter(differences)

    assert len(differences) == 4

    changed = 0
    for name, value in model.state_dict().items():
        assert torch.allclose(value, merged[name], rtol=0, atol=1e-6), name
        changed += not torch.equal(value, before[name])

    assert changed == 4


def pickled(path, model):
    weights = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    torch.save(weights, path / "adapter_model.bin")


def cut_off(path, model):
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-8])


def without_a_configuration(path, model):
    (path / "adapter_config.json").unlink()


def no_json(path, model):
    (path / "adapter_config.json").write_text("{")


def unknown_kind(path, model):
    config = json.loads((path / "adapter_config.json").read_text())
    config |= {"peft_type": "STEAM"}
    (path / "adapter_config.json").write_text(json.dumps(config))


def frozen(path, model):
    model.requires_grad_(False)


def of_another_model(path, model):
    record = {"model": "0" * 64}
    (path / adapter.RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (pickled, "adapter_model.safetensors"),
        (cut_off, "adapter_model.safetensors: "),
        (without_a_configuration, "adapter_config.json"),
        (no_json, "adapter_config.json: "),
        (unknown_kind, "must be a plain LoRA"),
        (frozen, "the model must train transformer.h.0.attn.c_attn"),
        (of_another_model, "was trained with other weights than "),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(gpt2, tmp_path, damage, reason):
    path = saved(copy.deepcopy(gpt2), tmp_path / "adapter")
    damage(path, gpt2)
    with pytest.raises(InputError) as caught:
        lora_differences(path, gpt2)

    assert str(caught.value).startswith(f"adapter {path}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"bias": "all"},
        {"modules_to_save": ["ln_f"]},
        {"target_modules": ["wte"]},
        {"rank_pattern": {"c_fc": 2}},
    ],
    ids=str,
)
def test_more_than_a_plain_lora_is_refused(gpt2, tmp_path, options):
    path = saved(copy.deepcopy(gpt2), tmp_path / "adapter", **options)
    with pytest.raises(InputError, match="must be a plain LoRA of linear layers"):
        lora_differences(path, gpt2)


def test_another_shape_is_refused(gpt2, tmp_path):
    wide = GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=2, n_layer=1, vocab_size=320))
    path = saved(wide, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"c_attn, a linear layer of shape \[32, 96\]"):
        lora_differences(path, gpt2)


def test_an_adapter_of_other_weights_is_refused(gpt2, train):
    path = train()
    assert lora_differences(path, gpt2)

    with torch.no_grad():
        next(gpt2.parameters())[-1, -1] += 1

    with pytest.raises(InputError, match="was trained with other weights than"):
        lora_differences(path, gpt2)
