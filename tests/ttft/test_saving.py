"""Keeping an adaptation as a folder that PEFT loads."""

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from model_state import unchanged

PROMPT = "the cat sat on the red mat"
TOKENS = torch.tensor([[5, 17, 260, 33, 8, 90, 41, 7]])


def logits_of(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.fixture
def save_base(tmp_path):
    """Saves a model, and returns what loads it, whatever happens to the one in memory."""

    def save(model):
        folder = tmp_path / "base"
        model.save_pretrained(folder)
        model.name_or_path = str(folder)
        return lambda: AutoModelForCausalLM.from_pretrained(folder)

    return save


def test_peft_loads_a_trained_adapter(llama, make, with_lora, save_base, tmp_path):
    load_base = save_base(llama)
    folder = tmp_path / "adapter"
    with make(with_lora(llama)).adapted(PROMPT) as adaptation:
        adapted = logits_of(llama)
        saved = adaptation.save_adapter(folder)

    assert (saved.path, saved.share, saved.left_out) == (folder, 1, [])
    assert not torch.allclose(logits_of(llama), adapted, atol=1e-3)

    loaded = PeftModel.from_pretrained(load_base(), folder)
    torch.testing.assert_close(logits_of(loaded), adapted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", ["gpt2", "grouped_llama"], indirect=True)
@pytest.mark.parametrize("rank", [2, 16])
def test_a_lora_has_the_share_that_it_says_and_can_be_added(
    model, make, save_base, tmp_path, rank
):
    load_base = save_base(model)
    start = dict(load_base().named_parameters())
    folder = tmp_path / "adapter"
    with make(model).adapted(PROMPT) as adaptation:
        adapted = {name: p.detach().clone() for name, p in model.named_parameters()}
        saved = adaptation.save_adapter(folder, rank=rank)

    merged = PeftModel.from_pretrained(load_base(), folder).merge_and_unload()

    with unchanged(model), make(model, adapter=str(folder), n_select=0).adapted(PROMPT):
        torch.testing.assert_close(logits_of(model), logits_of(merged))

    total = lost = 0.0
    for name, parameter in merged.named_parameters():
        change = (adapted[name] - start[name]).double()
        error = (adapted[name] - parameter).double()
        total += change.square().sum().item()
        lost += error.square().sum().item()
        if name in saved.left_out:
            assert torch.equal(parameter, start[name])
        else:
            values = torch.linalg.svdvals(change)[rank:]
            torch.testing.assert_close(
                error.norm(), values.norm(), rtol=1e-3, atol=1e-5
            )

    assert saved.share == pytest.approx(1 - lost / total, abs=1e-5)
    assert 0 < saved.share < 1
    assert any("norm" in name or "ln_" in name for name in saved.left_out)


@pytest.fixture
def refuses(make, tmp_path):
    """That an adaptation of the model cannot be saved, and why."""

    def check(model, message, *, rank=None, **options):
        refused = pytest.raises((ValueError, RuntimeError), match=message)
        with make(model, **options).adapted(PROMPT) as adaptation, refused:
            adaptation.save_adapter(tmp_path / "adapter", rank=rank)

        assert list(tmp_path.iterdir()) == []

    return check


def test_an_adaptation_without_a_step_keeps_no_share(gpt2, make, tmp_path):
    with make(gpt2).adapted(PROMPT, seconds=1e-9) as adaptation:
        saved = adaptation.save_adapter(tmp_path / "adapter", rank=2)

    assert (adaptation.passes, saved.share) == (0, 0)


def test_what_cannot_be_saved_is_refused(gpt2, llama, with_lora, refuses):
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1)
    )
    refuses(gpt2, "rank must be an int: weights are trained, got None")
    refuses(gpt2, "rank must be in 1..16, got 0", rank=0)
    refuses(gpt2, "rank must be in 1..16, got 17", rank=17)
    refuses(gpt2, "nothing was trained: n_select and", rank=2, n_select=0)
    refuses(with_lora(llama), "rank must be None: the model's adapters are", rank=2)
    refuses(mamba, "PEFT cannot adapt this model: .*'out_proj'", rank=2, max_length=32)
    # Its first layer is no mixture of experts.
    deepseek = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=16,
            moe_intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            q_lora_rank=8,
            kv_lora_rank=8,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
        )
    )
    refuses(deepseek, "PEFT takes layers of this model for its experts", rank=2)
    gpt2.requires_grad_(False).transformer.ln_f.requires_grad_(True)
    refuses(gpt2, "no trained parameter fits into a LoRA", rank=2)
