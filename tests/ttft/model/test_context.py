"""How many tokens a model reads: what its configuration does not say."""

import pytest
import torch
from peft import (
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    MptConfig,
    MptForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    RwkvConfig,
)

from hullft_ops.ttft import bits_per_byte
from hullft_ops.ttft.model.context import known_context

PROMPT = "the cat sat on the red mat"
LONG = 20 * PROMPT


def roberta():
    config = RobertaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=34, is_decoder=True, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return RobertaForCausalLM(config).eval()


def test_padding_has_positions_of_robertas_own(make, tokenizer):
    model = roberta()
    with pytest.raises(ValueError, match="max_length is 33, the model's context is 32"):
        make(model, max_length=33)
    with make(model).adapted(LONG):
        assert bits_per_byte(model, tokenizer, LONG) > 0
    assert make(model).generate(LONG, max_new_tokens=4) is not None


def test_a_prefix_takes_positions(gpt2, make, tokenizer):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(gpt2, config).eval()
    with pytest.raises(ValueError, match="max_length is 30, the model's context is 29"):
        make(model, max_length=30)
    with make(model).adapted(LONG):
        assert bits_per_byte(model, tokenizer, LONG) > 0


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
            "PROMPT_TUNING",
        ),
        (
            PromptEncoderConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
            ),
            "P_TUNING",
        ),
    ],
)
def test_virtual_tokens_among_the_logits_are_refused(
    gpt2, make, tokenizer, config, kind
):
    model = get_peft_model(gpt2, config)
    message = (
        f"model must not have virtual tokens among its logits, as PEFT's {kind} has"
    )
    with pytest.raises(ValueError, match=f"^TestTimeFinetuner: {message}$"):
        make(model)
    with pytest.raises(ValueError, match=f"^bits_per_byte: {message}$"):
        bits_per_byte(model, tokenizer, PROMPT)


def test_mpt_calls_it_by_another_name(make):
    config = MptConfig(
        d_model=16, n_heads=2, n_layers=1, vocab_size=400, max_seq_len=24
    )
    with pytest.raises(ValueError, match="max_length is 25, the model's context is 24"):
        make(MptForCausalLM(config), max_length=25)


def bloom(**stated):
    config = BloomConfig(vocab_size=400, hidden_size=16, n_layer=1, n_head=2, **stated)
    torch.manual_seed(0)
    return BloomForCausalLM(config).eval()


def test_blooms_checkpoints_call_it_by_a_third_name(make, tokenizer):
    model = bloom(seq_length=24)
    with pytest.raises(ValueError, match="max_length is 25, the model's context is 24"):
        make(model, max_length=25)
    with make(model).adapted(LONG):
        scored = bits_per_byte(model, tokenizer, LONG)
        assert scored == bits_per_byte(
            bloom_like(model), tokenizer, LONG, max_length=24
        )


def bloom_like(model):
    other = bloom()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (
            RwkvConfig(
                hidden_size=16, num_hidden_layers=1, vocab_size=400, context_length=20
            ),
            20,
        ),
        (GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, seq_length=20), 32),
        (
            MptConfig(d_model=16, n_heads=2, n_layers=1, max_seq_len=24, seq_length=20),
            24,
        ),
    ],
)
def test_what_the_classes_say_goes_before_what_checkpoints_add(
    tokenizer, config, known
):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert known_context("test", model, tokenizer) == known


def test_the_tokenizer_limits_what_a_model_without_a_limit_reads(
    gpt2, tokenizer, monkeypatch
):
    assert known_context("test", gpt2, tokenizer) == 32
    assert known_context("test", bloom(seq_length=24), tokenizer) == 24
    assert known_context("test", bloom(), tokenizer) is None
    monkeypatch.setattr(tokenizer, "model_max_length", 20)
    assert known_context("test", bloom(), tokenizer) == 20


def test_where_nothing_has_a_limit_texts_have_that_of_the_finetuner(make, monkeypatch):
    model = bloom()
    with pytest.raises(
        ValueError, match="max_length must be given, neither model nor tokenizer"
    ):
        make(model)
    finetuner = make(model, max_length=16)
    assert finetuner.generate(PROMPT, max_new_tokens=5) is not None
    with pytest.raises(ValueError, match=r"in 1\.\.15 with a context of 16, got 16"):
        finetuner.generate(PROMPT, max_new_tokens=16)
