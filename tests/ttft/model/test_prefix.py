"""Going on from the cache of a prefix, against reading the prefix each time."""

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from hullft_ops.ttft import Datastore, score_text
from hullft_ops.ttft.model import scoring
from hullft_ops.ttft.model.generation import continuation
from hullft_ops.ttft.model.prefix import Prefix, prefill

CONTEXT = 32
PROMPT = "the cat sat on the red mat"
LONG = f"{PROMPT} " * 6
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PREFIX = [[40, 41, 42, 43], [90, 91, 92], [60, 61]]
IDS = [40, 41, 42, 43, 90, 91, 92, 60, 61]


def mistral():
    """It sees 8 tokens back, fewer than a prefix and a text have."""
    config = MistralConfig(
        vocab_size=320,
        max_position_embeddings=CONTEXT,
        intermediate_size=24,
        num_key_value_heads=1,
        sliding_window=8,
        **SIZES,
    )
    return MistralForCausalLM(config).eval()


def bloom():
    return BloomForCausalLM(
        BloomConfig(vocab_size=320, hidden_size=16, n_layer=2, n_head=2)
    ).eval()


def with_lora(gpt2):
    config = LoraConfig(
        target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(gpt2, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return adapted.eval()


@pytest.fixture(params=["gpt2", "llama", "mistral", "bloom", "lora"])
def any_model(request, gpt2, llama):
    torch.manual_seed(0)
    made = {"gpt2": gpt2, "llama": llama}
    kind = request.param
    if kind == "lora":
        return with_lora(gpt2)
    return made[kind] if kind in made else {"mistral": mistral, "bloom": bloom}[kind]()


@pytest.fixture
def lengths():
    """Hooks a model and lists how many tokens each of its passes reads."""

    def watch(model):
        seen = []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]),
            with_kwargs=True,
        )
        return seen

    return watch


def prefix_of(model, tokenizer):
    prefix = Prefix()
    prefix.read(model, tokenizer, PREFIX)
    return prefix


@pytest.mark.parametrize(
    "kind", ["byte_level", "byte_level_bos_eos", "byte_fallback_bos"]
)
@pytest.mark.parametrize("text", [PROMPT, LONG])
def test_it_gives_the_numbers_of_the_whole(
    any_model, tokenizers, kind, text, monkeypatch
):
    tokenizer = tokenizers[kind]
    prefix = prefix_of(any_model, tokenizer)
    assert prefix.cached is not None
    score = scoring.score_behind(any_model, tokenizer, text, CONTEXT, prefix)
    again = scoring.score_behind(any_model, tokenizer, text, CONTEXT, prefix)
    assert again == score, "using the cache leaves it as it was"
    options = {"prefix_ids": IDS, "max_length": CONTEXT}
    own = score_text(any_model, tokenizer, text, **options)
    monkeypatch.setattr(scoring, "prefill", lambda model, tokens: None)
    whole = score_text(any_model, tokenizer, text, **options)
    for one in (score, own):
        assert one.nll == pytest.approx(whole.nll, rel=1e-5)
        assert (one.tokens, one.bytes) == (whole.tokens, whole.bytes)


def test_the_prefix_is_read_once(model, tokenizer, lengths):
    prefix, size = prefix_of(model, tokenizer), len(tokenizer(PROMPT)["input_ids"])
    score_text(model, tokenizer, PROMPT)
    seen = lengths(model)
    scoring.score_behind(model, tokenizer, PROMPT, CONTEXT, prefix)
    assert seen == [size + 1]
    seen.clear()
    model.generation_config.eos_token_id = None
    continuation(model, tokenizer, PROMPT, CONTEXT, prefix=prefix, max_new_tokens=2)
    assert seen == [size + 1, 1]
    seen.clear()
    scoring.score_behind(model, tokenizer, LONG, CONTEXT, prefix)
    assert len(seen) > 2
    assert max(seen) <= CONTEXT - len(IDS) + 1
    seen.clear()
    score_text(model, tokenizer, LONG, prefix_ids=IDS)
    assert seen[0] == len(IDS) - 1
    assert max(seen[1:]) <= CONTEXT - len(IDS) + 1


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"num_beams": 2, "do_sample": False}, {"use_cache": False}],
)
def test_generation_goes_on_from_it_or_does_without(any_model, tokenizer, options):
    prefix = prefix_of(any_model, tokenizer)
    options = {"max_new_tokens": 6, "pad_token_id": 2, "eos_token_id": 2, **options}
    ids = torch.tensor([[*IDS, *tokenizer(PROMPT)["input_ids"]]])
    output = any_model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **options
    )
    wanted = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    for _ in range(2):
        found = continuation(
            any_model, tokenizer, PROMPT, CONTEXT, prefix=prefix, **options
        )
        assert found == wanted


def test_a_model_that_ignores_its_cache_reads_the_prefix_each_time(
    gpt2, tokenizer, monkeypatch
):
    wanted = score_text(gpt2, tokenizer, LONG, prefix_ids=IDS)
    forward = gpt2.forward

    def forgetful(input_ids=None, cache=None, past_key_values=None, **options):
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr("hullft_ops.ttft.model.prefix._known", {})
    monkeypatch.setattr(gpt2, "forward", forgetful)
    assert prefix_of(gpt2, tokenizer).cached is None
    found = score_text(gpt2, tokenizer, LONG, prefix_ids=IDS)
    assert found.nll == pytest.approx(wanted.nll, rel=1e-5)


def test_virtual_tokens_have_the_cache_for_themselves(gpt2):
    config = PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    assert prefill(get_peft_model(gpt2, config).eval(), IDS) is None


def test_it_does_not_outlive_the_weights_it_was_made_with(gpt2, tokenizer):
    prefix = prefix_of(gpt2, tokenizer)
    with torch.no_grad():
        gpt2.transformer.h[0].attn.c_attn.weight.mul_(3)
    found = scoring.score_behind(gpt2, tokenizer, PROMPT, CONTEXT, prefix)
    assert found == score_text(gpt2, tokenizer, PROMPT, prefix_ids=IDS)


def test_it_serves_only_the_adapters_it_was_made_with(gpt2, tokenizer):
    model = with_lora(gpt2)
    prefix = prefix_of(model, tokenizer)
    with model.disable_adapter():
        found = scoring.score_behind(model, tokenizer, PROMPT, CONTEXT, prefix)
        assert found == score_text(model, tokenizer, PROMPT, prefix_ids=IDS)


def test_an_adaptation_makes_it_and_drops_it(
    model, tokenizer, make, embedder, tmp_path, lengths
):
    texts = ["a dog ran", "the cat sat", "the mat"]
    store = Datastore.build(texts, embedder, tmp_path / "texts", progress=False)
    finetuner, size = (
        make(model, store=store, context=2),
        len(tokenizer(PROMPT)["input_ids"]),
    )
    with finetuner.adapted(PROMPT) as report:
        assert report.seconds_prefill > 0
        seen = lengths(model)
        behind = finetuner.score_text(PROMPT)
        assert seen == [size + 1]
        whole = score_text(model, tokenizer, PROMPT, prefix_ids=report.prefix_ids)
        assert behind.nll == pytest.approx(whole.nll, rel=1e-5)
        assert finetuner._prefix.cached is not None
    assert finetuner._prefix.cached is None
    assert finetuner._prefix.texts == []
