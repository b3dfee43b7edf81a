"""Models that are not causal, or not their tokenizer's, are refused by what they compute."""

import copy

import pytest
import torch
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    MptForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hullft_ops.ttft.models.checks import (
    check_causal,
    highest_id,
    model_identity,
    model_window,
    text_window,
    unwrapped,
)

VOCABULARY = 320
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1}
CAUSAL = [
    (GPT2LMHeadModel, GPT2Config(**GPT2)),
    (BertLMHeadModel, BertConfig(**SIZES, is_decoder=True)),
]
NO_LOGITS = "which gives no logits of each token"
AHEAD = "which sees the tokens after the one that it reads"
# With weights as large as trained ones: a new model's move logits by one bfloat16 rounding.
BERT = BertConfig(**SIZES, initializer_range=0.2)
OTHERS = [
    (BertLMHeadModel, BERT, AHEAD),
    (BertForMaskedLM, BERT, AHEAD),
    (
        GPT2LMHeadModel,
        GPT2Config(**GPT2 | {"n_head": -1}),
        r"which cannot run on input_ids alone \(RuntimeError: .*",
    ),
    (BertForSequenceClassification, BERT, NO_LOGITS),
    (
        T5ForConditionalGeneration,
        T5Config(**T5, num_heads=2),
        r"which cannot run on input_ids alone \(.*",
    ),
]


def build(kind, config, dtype=torch.float32):
    torch.manual_seed(0)
    return kind(copy.deepcopy(config)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "config"), CAUSAL)
def test_a_causal_model_is_accepted(kind, config, dtype, tokenizer):
    check_causal(build(kind, config, dtype), tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "config", "reason"), OTHERS)
def test_any_other_is_refused(kind, config, reason, dtype, tokenizer):
    model = build(kind, config, dtype)
    with pytest.raises(ValueError, match=f"got {kind.__name__}, {reason}$"):
        check_causal(model, tokenizer)


def test_an_adapter_does_not_hide_it(tokenizer):
    lora = LoraConfig(init_lora_weights=False, target_modules=["query", "value"])
    model = get_peft_model(build(BertForMaskedLM, BertConfig(**SIZES)), lora)

    assert isinstance(unwrapped(model), BertForMaskedLM)

    with pytest.raises(ValueError, match="got BertForMaskedLM, which sees"):
        check_causal(model, tokenizer)


@pytest.mark.parametrize("kind", [PrefixTuningConfig, PromptTuningConfig])
def test_tokens_of_peft_before_each_text_are_refused(kind, llama, tokenizer):
    """A cache may begin with them, or lack them."""
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=2)

    with pytest.raises(ValueError, match="has tokens of PEFT before each text"):
        check_causal(get_peft_model(llama, config), tokenizer)


def test_rounding_by_the_next_token_is_not_looking_ahead(gpt2, tokenizer):
    """As in a mixture of experts, which multiplies the tokens of an expert at once."""

    def rounded(_module, _args, kwargs, output):
        output.logits = output.logits + 1e-8 * kwargs["input_ids"][:, -1:, None]

    gpt2.register_forward_hook(rounded, with_kwargs=True)
    check_causal(gpt2, tokenizer)


def test_the_model_must_have_every_id_of_the_tokenizer(gpt2, tokenizer):
    check_causal(gpt2, tokenizer)

    larger = copy.deepcopy(tokenizer)
    larger.add_tokens([f"<{number}>" for number in range(VOCABULARY)])
    highest = highest_id(larger)
    reason = f"every id of the tokenizer, up to {highest}, got GPT2LMHeadModel with 320"

    with pytest.raises(ValueError, match=reason):
        check_causal(gpt2, larger)

    gpt2.resize_token_embeddings(highest + 1)
    check_causal(gpt2, larger)


def test_a_model_keeps_its_modes(gpt2, tokenizer):
    gpt2.train()
    gpt2.transformer.h[0].eval()
    modes = [module.training for module in gpt2.modules()]

    check_causal(gpt2, tokenizer)

    assert [module.training for module in gpt2.modules()] == modes
    assert all(parameter.grad is None for parameter in gpt2.parameters())


def bloom(**stated):
    config = BloomConfig(vocab_size=400, hidden_size=16, n_layer=1, n_head=2, **stated)
    return BloomForCausalLM(config)


def test_configurations_name_the_window_differently(gpt2, tokenizer, monkeypatch):
    mpt = MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=400, max_seq_len=24)

    assert model_window(gpt2, tokenizer) == 32
    assert model_window(MptForCausalLM(mpt), tokenizer) == 24
    assert model_window(bloom(seq_length=20), tokenizer) == 20
    assert model_window(bloom(), tokenizer) is None

    monkeypatch.setattr(tokenizer, "model_max_length", 28)

    assert model_window(bloom(), tokenizer) == 28


def test_a_window_ends_where_cached_keys_would_be_rotated_otherwise(llama, tokenizer):
    llama.config.rope_parameters = {
        "rope_type": "longrope",
        "original_max_position_embeddings": 20,
    }

    assert model_window(llama, tokenizer) == 20


def test_a_window_is_the_users_or_the_models(gpt2, tokenizer):
    assert text_window(gpt2, tokenizer, None) == 32
    assert text_window(gpt2, tokenizer, 32) == 32
    assert text_window(bloom(), tokenizer, 5000) == 5000

    with pytest.raises(ValueError, match="max_length is 33, the model's window is 32"):
        text_window(gpt2, tokenizer, 33)

    with pytest.raises(ValueError, match="neither the model nor its tokenizer has a"):
        text_window(bloom(), tokenizer, None)

    with pytest.raises(ValueError, match="max_length must be in 2"):
        text_window(gpt2, tokenizer, 1)


def test_equal_models_have_one_identity(model):
    identity = model_identity(model)

    assert len(identity) == 64
    assert model_identity(copy.deepcopy(model)) == identity

    weight = next(model.parameters())
    # Other strides, the same values.
    weight.data = weight.data.T.contiguous().T

    assert model_identity(model.train().requires_grad_(False)) == identity


@pytest.mark.parametrize("position", [0, -1])
def test_any_value_changes_it(model, position):
    model.register_buffer("steps", torch.zeros(3, dtype=torch.bfloat16))
    identities = {model_identity(model)}
    tensors = model.state_dict().values()

    for tensor in tensors:
        tensor.view(-1)[position] += 1
        identities.add(model_identity(model))

    assert len(identities) == 1 + len(tensors)


def test_so_do_names_and_dtypes(gpt2):
    identities = {model_identity(gpt2), model_identity(gpt2.bfloat16())}
    gpt2.register_buffer("one", torch.zeros(1))
    identities.add(model_identity(gpt2))
    gpt2.register_buffer("another", gpt2.one)
    del gpt2.one
    identities.add(model_identity(gpt2))

    assert len(identities) == 4
