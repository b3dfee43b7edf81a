"""A prompt's whole walk on a tiny random model of each family that people use."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hullft_ops.ttft import reader
from hullft_ops.ttft.scoring import score_text
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
    "phi": {},
    "gpt_neox": {},
    "mamba": {},
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family])
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

        assert adaptation.score(PROMPT).nll == pytest.approx(nll, rel=1e-5)

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
    monkeypatch.setattr(reader, "TOKENS_AT_ONCE", at_once)
    finetuner = make(model, n_select=0, context=1, max_length=64)
    prompts = ["the cat", "the dog sat on the red mat", "a tree", "hello world " * 3]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    single = [finetuner.generate(prompt, **options) for prompt in prompts]

    assert finetuner.generate(prompts, **options) == single
    # Mamba keeps a state, in which no padding can be masked.
    assert finetuner.reader.takes_padding == (family != "mamba")
