"""Keeping an adaptation: PEFT folders, whole models, and a LoRA in place of all weights."""

import copy
import json
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hullft_ops.ttft import bits_per_byte

PROMPT = "the cat sat on the red mat"
IDS = torch.tensor([[5, 17, 260, 33, 8, 90, 41, 7]])


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def saved_base(model, folder):
    """The model as plain transformers loads it, whatever happens to the one in memory."""
    model.save_pretrained(folder)
    model.name_or_path = str(folder)
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def with_lora(model, name="default", **options):
    lora = LoraConfig(
        target_modules=["q_proj", "down_proj"], r=2, task_type="CAUSAL_LM", **options
    )
    return get_peft_model(model, lora, adapter_name=name)


@pytest.mark.parametrize(
    ("name", "whole"), [("default", None), ("mine", None), ("x", ["lm_head"])]
)
def test_peft_loads_a_trained_adapter(llama, make, tmp_path, name, whole):
    base = saved_base(llama, tmp_path / "base")
    with make(with_lora(llama, name, modules_to_save=whole)).adapted(PROMPT) as report:
        adapted = logits(llama)
        saved = report.save_adapter(tmp_path / "mine")
        report.save_adapter(tmp_path / "renamed", base_model="served")
    assert (saved.share, saved.left_out, saved.bits_per_byte) == (1, [], {})
    loaded = PeftModel.from_pretrained(base(), tmp_path / "mine")
    assert (adapted - logits(llama)).abs().max() > 0.01
    torch.testing.assert_close(logits(loaded), adapted, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    # What vLLM's filesystem resolver looks at.
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["modules_to_save"] == whole
    renamed = json.loads((tmp_path / "renamed" / "adapter_config.json").read_text())
    assert renamed == config | {"base_model_name_or_path": "served"}


def test_transformers_loads_a_whole_model(gpt2, tokenizer, make, tmp_path, bits):
    before, config = bits(gpt2), copy.deepcopy(vars(gpt2.config))
    with make(gpt2).adapted(PROMPT) as report:
        adapted, score = logits(gpt2), bits_per_byte(gpt2, tokenizer, PROMPT)
        tokenizer(PROMPT, truncation=True, max_length=2)
        report.save_pretrained(tmp_path / "mine")
        assert vars(gpt2.config) == config
    assert before.changed() == set()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    assert torch.equal(logits(model), adapted)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "mine")
    assert bits_per_byte(model, loaded, PROMPT) == score
    assert (
        json.loads((tmp_path / "mine" / "tokenizer.json").read_text())["truncation"]
        is None
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_lora_of_full_rank_keeps_all_that_fits(kind, request, make, tmp_path, bits):
    """The weights of linear layers come out as adapted; the others stay as before."""
    model = request.getfixturevalue(kind)
    base = saved_base(model, tmp_path / "base")
    before, start = bits(model), dict(base().named_parameters())
    with make(model).adapted(PROMPT) as report:
        adapted = {name: p.detach().clone() for name, p in model.named_parameters()}
        saved = report.save_adapter(tmp_path / "mine", rank=64)
    assert before.changed() == set()
    merged = PeftModel.from_pretrained(base(), tmp_path / "mine").merge_and_unload()
    squared, lost = {}, {}
    for name, parameter in merged.named_parameters():
        squared[name] = (adapted[name] - start[name]).double().square().sum().item()
        lost[name] = (adapted[name] - parameter).double().square().sum().item()
        if name not in saved.left_out:
            torch.testing.assert_close(parameter, adapted[name], rtol=0, atol=1e-6)
    kinds = {name.split(".")[-2] for name in saved.left_out}
    tied = {
        "wte",
        "wpe",
        "ln_1",
        "ln_2",
        "ln_f",
        "c_attn",
        "c_proj",
        "c_fc",
    }  # with biases
    norms = {"embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"}
    assert kinds == (tied if kind == "gpt2" else norms)
    assert 0.1 < saved.share < 1
    assert saved.share == pytest.approx(
        1 - sum(lost.values()) / sum(squared.values()), abs=1e-6
    )


def test_a_lora_keeps_the_largest_singular_values(llama, make, tmp_path):
    """Against numpy-style truncation of each difference, computed here."""
    start = {name: p.detach().clone() for name, p in llama.named_parameters()}
    with make(llama).adapted(PROMPT) as report:
        saved = report.save_adapter(tmp_path / "mine", rank=3)
        after = {name: p.detach().clone() for name, p in llama.named_parameters()}
    weights = load_file(tmp_path / "mine" / "adapter_model.safetensors")
    total = kept = 0.0
    for name, parameter in after.items():
        difference = (parameter - start[name]).double()
        total += difference.square().sum().item()
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{key}A.weight" not in weights:
            assert name in saved.left_out
            continue
        values = torch.linalg.svdvals(difference)
        kept += values[:3].square().sum().item()
        error = (
            difference
            - (weights[f"{key}B.weight"] @ weights[f"{key}A.weight"]).double()
        )
        torch.testing.assert_close(
            error.norm(), values[3:].norm(), rtol=1e-5, atol=1e-8
        )
    assert saved.share == pytest.approx(kept / total, rel=1e-6)


def test_bits_per_byte_say_what_is_lost(llama, tokenizer, make, tmp_path, bits):
    base = saved_base(llama, tmp_path / "base")
    with make(llama).adapted(PROMPT) as report:
        adapted = bits(llama)
        saved = report.save_adapter(tmp_path / "mine", rank=2, text=PROMPT)
        assert adapted.changed() == set()
        score = bits_per_byte(llama, tokenizer, PROMPT)
    loaded = PeftModel.from_pretrained(base(), tmp_path / "mine")
    wanted = {
        "before": bits_per_byte(llama, tokenizer, PROMPT),
        "adapted": score,
        "saved": bits_per_byte(loaded, tokenizer, PROMPT),
    }
    assert saved.bits_per_byte == pytest.approx(wanted, abs=1e-5)
    assert score < wanted["saved"] < wanted["before"]


def test_after_the_block_the_model_is_restored(gpt2, make, tmp_path):
    with make(gpt2).adapted(PROMPT) as report:
        copies = [
            copy.copy(report),
            copy.deepcopy(report),
            pickle.loads(pickle.dumps(report)),
        ]
        assert copies == [report] * 3
        json.dumps(report.to_dict())
    for one in (report, *copies):
        with pytest.raises(
            RuntimeError, match="save_adapter: the model is restored, call"
        ):
            one.save_adapter(tmp_path / "mine", rank=2)
        with pytest.raises(
            RuntimeError, match="save_pretrained: the model is restored"
        ):
            one.save_pretrained(tmp_path / "mine")
    with (
        make(gpt2, n_select=0, context=1).adapted(PROMPT) as report,
        pytest.raises(
            RuntimeError,
            match="save_pretrained: nothing was trained or merged, n_select is 0$",
        ),
    ):
        report.save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_what_does_not_fit_is_refused(gpt2, llama, make, tmp_path):
    mine = tmp_path / "mine"
    with make(gpt2).adapted(PROMPT) as report:
        with pytest.raises(
            ValueError, match="rank must be given, the model's weights are trained"
        ):
            report.save_adapter(mine)
        with pytest.raises(ValueError, match="rank must be in 1.*, got 0"):
            report.save_adapter(mine, rank=0)
        with pytest.raises(
            ValueError, match="text must have at least 2 tokens, got '' with 0"
        ):
            report.save_adapter(mine, rank=2, text="")
    model = with_lora(llama)
    model.add_adapter("other", LoraConfig(target_modules=["v_proj"], r=2))
    llama.lm_head.weight.requires_grad_(True)
    with make(model).adapted(PROMPT) as report:
        with pytest.raises(
            ValueError, match="rank must be None, the model's adapters are trained"
        ):
            report.save_adapter(mine, rank=2)
        with pytest.raises(
            ValueError, match="of the adapter 'default', got 1 others, .*lm_head"
        ):
            report.save_adapter(mine)
        with pytest.raises(ValueError, match="adapters are trained: use save_adapter"):
            report.save_pretrained(mine)
        model.base_model.set_adapter(["default", "other"])
        with pytest.raises(
            ValueError, match="one adapter of a PeftModel must be active, got 2"
        ):
            report.save_adapter(mine)
    gpt2.requires_grad_(False).transformer.ln_f.requires_grad_(True)
    with (
        make(gpt2).adapted(PROMPT) as report,
        pytest.raises(ValueError, match="no trained parameter fits into a LoRA"),
    ):
        report.save_adapter(mine, rank=2)
    assert not list(tmp_path.glob("*mine*"))


def test_a_folder_is_replaced_only_if_it_is_ours(gpt2, make, tmp_path):
    mine, users = tmp_path / "mine", tmp_path / "users"
    users.mkdir()
    (users / "config.json").write_text("mine")
    mine.mkdir()
    with make(gpt2).adapted(PROMPT) as report:
        report.save_adapter(mine, rank=2)
        first = (mine / "adapter_model.safetensors").read_bytes()
        with pytest.raises(FileExistsError, match="mine exists: name another"):
            report.save_adapter(mine, rank=4)
        assert (mine / "adapter_model.safetensors").read_bytes() == first
        with pytest.raises(
            FileExistsError, match="users exists, and has no hullft_ops.json"
        ):
            report.save_pretrained(users, overwrite=True)
        (mine / "notes.txt").write_text("mine")
        (mine / "config.json").write_text("mine")
        with pytest.raises(
            FileExistsError, match=r"config.json exists, and is not a file of ours"
        ):
            report.save_pretrained(mine, overwrite=True)
        (mine / "config.json").unlink()
        report.save_pretrained(mine, overwrite=True)
        adapted = logits(gpt2)
    assert (
        (users / "config.json").read_text()
        == (mine / "notes.txt").read_text()
        == "mine"
    )
    # An adapter left behind would be loaded with the model.
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(mine)), adapted)
    assert {path.name for path in tmp_path.iterdir()} >= {"mine", "users"}
    assert not list(tmp_path.glob(".*"))
