"""One LoRA for a datastore: trained, killed, read by PEFT and added to a model's weights."""

import copy
import json
import os
import random
import shutil
import signal
import time
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import save_and_load
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from forked import forked, status_of
from hullft_ops.ttft import adapter_training
from hullft_ops.ttft.adapter_training import train_adapter
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.loss import NonFiniteLossError
from hullft_ops.ttft.models.checks import model_identity
from hullft_ops.ttft.scoring import score_text
from hullft_ops.ttft.techniques.adapter import RECORD, add_lora, read_adapter
from hullft_ops.ttft.validation import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RATE = 1.5


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


@pytest.mark.parametrize(
    ("model", "options"),
    [("gpt2", {}), ("llama", {"dtype": "bfloat16", "batch_size": 4, "epochs": 2})],
    indirect=["model"],
)
def test_peft_loads_an_adapter_that_fits_the_passages(
    model, tokenizer, store, texts, tmp_path, options, monkeypatch
):
    # No checkpoint asks the hub.
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", None)
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
    monkeypatch.setattr(adapter_training, "_SAVE_STEPS", 7)

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
    assert {entry.name for entry in tmp_path.iterdir()} == {"adapter", "whole"}


def test_it_goes_on_from_the_last_checkpoint(train, store, monkeypatch):
    monkeypatch.setattr(adapter_training, "_SAVE_STEPS", 4)
    batches, pad = [], adapter_training._padded

    def padded(rows):
        batches.append(rows)
        if len(batches) == 11:
            raise KeyboardInterrupt

        return pad(rows)

    monkeypatch.setattr(adapter_training, "_padded", padded)

    with pytest.raises(KeyboardInterrupt):
        train()

    train()

    # 12 passages, and 8 steps until the second checkpoint.
    assert len(batches) == 11 + 12 - 8


def interrupted(train, monkeypatch, **options):
    """A training that has a checkpoint, and then no room."""
    trained = adapter_training._train

    def full(*arguments):
        trained(*arguments)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(adapter_training, "_train", full)
        patch.setattr(adapter_training, "_SAVE_STEPS", 4)

        with pytest.raises(OSError, match="No space left"):
            train(**options)


def test_a_checkpoint_that_a_kill_cut_off_is_passed_over(train, monkeypatch, tmp_path):
    interrupted(train, monkeypatch)
    [training] = tmp_path.glob(".adapter.*/training_*")
    torn = training / "checkpoint-99"
    torn.mkdir()
    (torn / "optimizer.pt").write_text("cut off")

    train()

    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_another_training_begins_anew(train, store, monkeypatch, tmp_path):
    interrupted(train, monkeypatch)
    path = train(seed=8)

    assert json.loads((path / RECORD).read_bytes())["seed"] == 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


@pytest.fixture
def bart():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_ffn_dim": 24}
    return BartForCausalLM(
        BartConfig(vocab_size=320, decoder_attention_heads=2, **sizes)
    ).eval()


def test_a_model_learns_the_next_token_whatever_its_own_loss(
    bart, tokenizer, store, tmp_path
):
    """BART's compares each token with itself."""
    options = {"rank": 4, "lr": RATE, "epochs": 10, "batch_size": 2, "max_length": 32}
    path = train_adapter(bart, tokenizer, store, tmp_path / "adapter", **options)
    adapted = PeftModel.from_pretrained(copy.deepcopy(bart), path)
    before, after = (
        sum(score_text(each, tokenizer, text).nll for text in store.texts[1:])
        for each in (bart, adapted)
    )

    assert after < 0.99 * before


def test_a_model_that_scales_its_weights_to_be_trained_keeps_them(
    tokenizer, store, tmp_path
):
    """RWKV in train mode, where it would also drop out at random."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "rescale_every": 1}
    rwkv = RwkvForCausalLM(RwkvConfig(vocab_size=320, **sizes)).eval()
    rwkv(torch.tensor([[1, 2]]))
    before = model_identity(rwkv)
    train_adapter(rwkv, tokenizer, store, tmp_path / "adapter", passages=2)

    assert model_identity(rwkv) == before


def test_what_is_compiled_is_trained_or_refused(llama, tokenizer, store, tmp_path):
    expected = train_adapter(llama, tokenizer, store, tmp_path / "plain", passages=2)
    compiled = torch.compile(copy.deepcopy(llama), backend="eager")
    path = train_adapter(compiled, tokenizer, store, tmp_path / "other", passages=2)

    assert (path / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    assert read_adapter(path, LanguageModel(llama, tokenizer))

    # A deep copy of it would still run the original, which no LoRA changes.
    llama.forward = torch.compile(llama.forward, backend="eager")

    with pytest.raises(ValueError, match="must not have a forward of its own"):
        train_adapter(llama, tokenizer, store, tmp_path / "third")


def test_a_loss_of_nan_leaves_nothing(train, tmp_path):
    with pytest.raises(NonFiniteLossError, match="a loss is not finite: lower lr"):
        train(lr=1e30)

    assert not list(tmp_path.iterdir())


def test_what_cannot_be_trained_is_refused_before_the_work(
    gpt2, tokenizer, store, tmp_path
):
    path = tmp_path / "adapter"
    bert = BertLMHeadModel(BertConfig(vocab_size=320, num_hidden_layers=1))

    with pytest.raises(ValueError, match="must be a causal language model"):
        train_adapter(bert, tokenizer, store, path)

    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1)
    )

    with pytest.raises(ValueError, match="'out_proj'"):
        train_adapter(mamba, tokenizer, store, path, max_length=32)

    with pytest.raises(ValueError, match="max_length is 99, the model's window is 32"):
        train_adapter(gpt2, tokenizer, store, path, max_length=99)

    with pytest.raises(ValueError, match="lr must be a finite number, got nan"):
        train_adapter(gpt2, tokenizer, store, path, lr=float("nan"))

    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)

    with pytest.raises(ValueError, match="must have no adapters, got a PEFT model"):
        train_adapter(get_peft_model(gpt2, lora), tokenizer, store, path)

    assert not list(tmp_path.iterdir())


def test_it_trains_on_as_many_passages_as_asked(train, monkeypatch):
    lengths = []
    tokenized = adapter_training._tokenized

    def watched(*arguments):
        passages = tokenized(*arguments)
        lengths.append(len(passages))
        return passages

    monkeypatch.setattr(adapter_training, "_tokenized", watched)
    weights = [
        load_file(train(f"{count}", passages=count, seed=1) / WEIGHTS)
        for count in (3, 5, 100)
    ]

    assert lengths == [3, 5, 12]
    assert not any(
        torch.equal(weights[0][name], weights[1][name])
        for name in weights[0]
        if "lora_B" in name
    )


def test_the_rate_is_a_share_of_the_weights_and_falls_to_0(train, gpt2, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def watched(optimizer, *arguments, **options):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(passages=4)
    layers = [p for p in gpt2.transformer.h.parameters() if p.dim() == 2]
    size = median(p.detach().square().mean().sqrt().item() for p in layers)

    assert rates == pytest.approx([RATE * size * n / 4 for n in (4, 3, 2, 1)])


def test_a_store_without_a_passage_of_two_tokens_is_refused(train, store):
    store.texts = ["a", ""]
    with pytest.raises(ValueError, match="store has no passage of 2 tokens"):
        train()


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
    peft_model = get_peft_model(copy.deepcopy(model), config)
    peft_model.save_pretrained(path, save_embedding_layers=False)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"c_fc|down_proj": 2}, "alpha_pattern": {"c_attn|q_proj": 3}},
    ],
    ids=str,
)
def test_adding_it_equals_pefts_merged_weights(model, tokenizer, tmp_path, options):
    path = saved(model, tmp_path / "adapter", **options)
    base = copy.deepcopy(model)
    merged = PeftModel.from_pretrained(base, path).merge_and_unload().state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    layers = read_adapter(path, LanguageModel(model, tokenizer))
    add_lora(layers)

    assert len(layers) == 4
    assert torch.equal(torch.get_rng_state(), state)

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


def no_json(path, model):
    (path / CONFIG).write_text("{")


def frozen(path, model):
    model.requires_grad_(False)


def embedding(path, model):
    saved(model, path, target_modules=["wpe"])


def sets(**entries):
    def damage(path, model):
        config = json.loads((path / CONFIG).read_text())
        (path / CONFIG).write_text(json.dumps(config | entries))

    return damage


def has_factor(value):
    def damage(path, model):
        weights = load_file(path / WEIGHTS)
        name = next(name for name in weights if name.endswith("lora_A.weight"))
        save_file(weights | {name: value}, path / WEIGHTS)

    return damage


def has_embeddings(path, model):
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    trained = get_peft_model(copy.deepcopy(model), config)
    trained.save_pretrained(path, save_embedding_layers=True)


ALONE = "must have the factors of the model's layers alone, not so: base_model.model."
SHAPES = f"{ALONE}transformer.h.0.attn.c_attn.lora_A"
NOT_FINITE = "the factors of transformer.h.0.attn.c_attn are not finite"
REFUSED = [
    (pickled, "has no adapter_model.safetensors"),
    (cut_off, "SafetensorError: "),
    (no_json, "Expecting property name"),
    (frozen, "the model must train transformer.h.0.attn.c_attn"),
    (embedding, "must be of linear layers, has transformer.wpe"),
    (sets(peft_type="IA3"), "must be a plain LoRA, sets "),
    (sets(use_dora=True), "must be a plain LoRA, sets use_dora"),
    (sets(init_lora_weights="pissa"), "must be a plain LoRA, sets init_lora_weights"),
    (has_embeddings, f"{ALONE}lm_head.weight"),
    (has_factor(torch.zeros(3, 16)), SHAPES),
    (has_factor(torch.full((4, 16), torch.nan)), NOT_FINITE),
]


@pytest.mark.parametrize(("damage", "reason"), REFUSED)
def test_what_is_no_plain_finite_lora_is_refused(
    gpt2, tokenizer, tmp_path, damage, reason
):
    path = saved(gpt2, tmp_path / "adapter")
    before = copy.deepcopy(gpt2.state_dict())
    damage(path, gpt2)

    with pytest.raises(InputError) as caught:
        read_adapter(path, LanguageModel(gpt2, tokenizer))

    assert str(caught.value).startswith(f"adapter {path}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)

    for name, value in gpt2.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_adapter_of_other_weights_is_refused(gpt2, tokenizer, train):
    path = train()

    assert read_adapter(path, LanguageModel(gpt2, tokenizer))

    with torch.no_grad():
        next(gpt2.parameters())[-1, -1] += 1

    with pytest.raises(InputError, match="was trained with other weights than"):
        read_adapter(path, LanguageModel(gpt2, tokenizer))
