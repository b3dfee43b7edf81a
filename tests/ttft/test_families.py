"""A prompt's whole walk on a tiny random model of each family that people use."""

from math import isfinite

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hullft_ops.ttft import language_model
from hullft_ops.ttft.adapter_training import with_lora
from hullft_ops.ttft.scoring import score_text
from hullft_ops.ttft.techniques.adapter import add_lora, read_lora
from model_state import unchanged

PROMPT = "the cat sat"
SIZES = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
FAMILIES = {
    "qwen3": GROUPED,
    "gemma3_text": GROUPED | {"sliding_window": 16},
    "mistral": GROUPED | {"sliding_window": 16},
    "mixtral": GROUPED | {"num_local_experts": 4},
    "llama4_text": GROUPED | {"num_local_experts": 4, "intermediate_size_mlp": 24},
    "phi": {},
    "gpt_neox": {},
    # It computes in float32 what it keeps.
    "mamba": {},
    # A state in some layers, keys and values in the others.
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"]},
    # Its last two layers use the keys and values of the first two.
    "gemma4_text": GROUPED
    | {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 16,
        "vocab_size_per_layer_input": 320,
        "hidden_size_per_layer_input": 8,
    },
    # It masks padding, but counts its positions.
    "bart": {
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 24,
        "forced_eos_token_id": None,
    },
    # It has no positions but distances.
    "bloom": {},
    # It keeps latents, from which keys and values are computed.
    "deepseek_v2": {
        "num_key_value_heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
    },
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES[family]))
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def adapt(model, make, store_of):
    """Makes a finetuner that reads and trains on passages, one the prompt itself."""
    store = store_of([PROMPT, "a dog ran"])
    options = {"method": "knn", "n_select": 2, "context": 1, "max_length": 64}
    options["lr"] = 0.05
    return lambda: make(model, store=store, **options).adapted(PROMPT)


@torch.no_grad()
def logits_of(model, tokens):
    return model(torch.tensor([tokens])).logits[0]


def test_a_model_is_adapted_scored_continued_and_restored(model, tokenizer, adapt):
    tokens = tokenizer(PROMPT)["input_ids"]
    before = score_text(model, tokenizer, PROMPT, max_length=64)
    with unchanged(model), adapt() as adaptation:
        after = score_text(model, tokenizer, PROMPT, max_length=64)

        assert after.nll < before.nll

        passage = adaptation.passages[0].ids
        behind = [*passage, *tokens]
        log_p = logits_of(model, behind)[len(passage) :].log_softmax(-1)
        nll = -sum(log_p[i, token].item() for i, token in enumerate(tokens[1:]))

        assert adaptation.score(PROMPT, after="").nll == pytest.approx(nll, rel=1e-5)

        for _ in range(4):
            behind.append(int(logits_of(model, behind)[-1].argmax()))

        expected = tokenizer.decode(behind[-4:], skip_special_tokens=True)
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
        options["token_healing"] = False

        assert adaptation.generate(PROMPT, **options) == expected


@pytest.mark.parametrize("at_once", [4, 512])
def test_a_batch_gives_the_texts_of_one_at_a_time(
    family, model, make, monkeypatch, at_once
):
    """Whether they read the padded prompts in parts, or at once."""
    monkeypatch.setattr(language_model, "TOKENS_AT_ONCE", at_once)
    finetuner = make(model, n_select=0, context=1, max_length=64)
    prompts = ["the cat", "the dog sat on the red mat", "a tree", "hello world " * 3]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    single = [finetuner.generate(prompt, **options) for prompt in prompts]

    assert finetuner.generate(prompts, **options) == single
    # In a state no padding can be masked.
    is_alone = family in ("mamba", "lfm2", "bart")
    rounded = make(model.to(torch.bfloat16), n_select=0, max_length=64)

    assert finetuner.language_model.takes_padding != is_alone
    assert rounded.language_model.takes_padding != is_alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_cast", [False, True])
def test_a_model_trains_and_writes_in_low_precision(model, make, dtype, is_cast):
    options = {"context": 1, "ngrams": 1, "train_on_prompt": 2, "max_length": 64}
    model.to(dtype)
    finetuner = make(model, dtype="bfloat16" if is_cast else None, **options)
    with unchanged(model), finetuner.adapted(PROMPT) as adaptation:
        adaptation.generate(PROMPT, max_new_tokens=8)

        assert isfinite(adaptation.score("the dog", after=PROMPT).nll)


@pytest.mark.parametrize("family", ["mixtral", "llama4_text", "lfm2"], indirect=True)
def test_a_lora_adds_to_experts_what_peft_adds(model, tokenizer, tmp_path):
    lora_model = with_lora(model, rank=2).eval()
    for name, parameter in lora_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    lora_model.save_pretrained(tmp_path, save_embedding_layers=False)
    tokens = tokenizer(PROMPT)["input_ids"]
    before, expected = logits_of(model, tokens), logits_of(lora_model, tokens)
    add_lora(read_lora(model, tmp_path))

    assert torch.allclose(logits_of(model, tokens), expected, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)
