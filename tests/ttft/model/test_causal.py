"""Models that are no causal language models are refused, by what they compute."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from hullft_ops.ttft import bits_per_byte
from hullft_ops.ttft.model.causal import check_causal

VOCABULARY = 320
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
}
SIZES |= {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
PAIR: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 16}
HEADS: dict[str, Any] = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
}
HEADS |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
T5 = T5Config(**PAIR, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
BART = BartConfig(**PAIR, **HEADS, max_position_embeddings=64)
GPT2 = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2)
LOOKS_AHEAD = "whose logits for the first token change with the last"
AS_DECODER = "load it as BertLMHeadModel with is_decoder=True"

CAUSAL: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "bert": lambda: BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)),
    "bart": lambda: BartForCausalLM(BART),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_head=2)
    ),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4
        )
    ),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**GROUPED, num_local_experts=4)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            word_embed_proj_dim=16,
        )
    ),
}
OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "bert": (
        lambda: BertLMHeadModel(BertConfig(**SIZES)),
        f"{LOOKS_AHEAD}: {AS_DECODER}",
    ),
    "bert mlm": (
        lambda: BertForMaskedLM(BertConfig(**SIZES)),
        f"{LOOKS_AHEAD}: {AS_DECODER}",
    ),
    "bert base": (
        lambda: BertModel(BertConfig(**SIZES)),
        f"gives no logits: {AS_DECODER}",
    ),
    "bert classifier": (
        lambda: BertForSequenceClassification(BertConfig(**SIZES)),
        f"logits have shape (1, 2) for 2 tokens: {AS_DECODER}",
    ),
    "roberta mlm": (
        lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
        f"{LOOKS_AHEAD}: load it as RobertaForCausalLM with is_decoder=True",
    ),
    "bart": (
        lambda: BartForConditionalGeneration(BART),
        f"{LOOKS_AHEAD}: load it as BartForCausalLM",
    ),
    "xlnet": (
        lambda: XLNetLMHeadModel(XLNetConfig(**PAIR, n_layer=2, n_head=2, d_inner=24)),
        f"{LOOKS_AHEAD}: transformers has none for xlnet",
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(T5),
        "cannot run on input_ids alone: transformers has none for t5",
    ),
    "t5 encoder": (
        lambda: T5EncoderModel(T5),
        "gives no logits: transformers has none for t5",
    ),
    "gpt2 base": (
        lambda: GPT2Model(GPT2),
        "gives no logits: load it as GPT2LMHeadModel",
    ),
    "gpt2 classifier": (
        lambda: GPT2ForSequenceClassification(GPT2),
        "logits have shape (1, 2) for 2 tokens: load it as GPT2LMHeadModel",
    ),
    "gpt2 tagger": (
        lambda: GPT2ForTokenClassification(GPT2),
        "GPT2ForTokenClassification with 2: load the tokenizer that belongs to it, or load it as "
        "GPT2LMHeadModel",
    ),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def made(kind: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return kind().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_model_is_accepted_in_either_mode(kind, dtype, tokenizer):
    for train in (True, False):
        model = made(CAUSAL[kind], dtype).train(train)
        check_causal("bits_per_byte", model, tokenizer)
        assert model.training == train


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_is_refused_with_the_class_that_would_do(kind, dtype, tokenizer):
    make_model, said = OTHERS[kind]
    for train in (True, False):
        model = made(make_model, dtype).train(train)
        with pytest.raises(ValueError, match="model must ") as caught:
            check_causal("bits_per_byte", model, tokenizer)
        assert said in str(caught.value)
        assert model.training == train


@pytest.mark.parametrize("kind", OTHERS)
def test_neither_is_it_finetuned_nor_scored(kind, make, tokenizer):
    model = made(OTHERS[kind][0])
    with pytest.raises(ValueError, match="^TestTimeFinetuner: model must "):
        make(model)
    with pytest.raises(ValueError, match="^bits_per_byte: model must "):
        bits_per_byte(model, tokenizer, "the cat sat")


def test_adapters_change_nothing_about_it(tokenizer):
    lora = LoraConfig(init_lora_weights=False, target_modules=["query", "value"])
    model = get_peft_model(made(OTHERS["bert mlm"][0]), lora)
    with pytest.raises(
        ValueError, match=f"got BertForMaskedLM, {LOOKS_AHEAD}: {AS_DECODER}"
    ):
        check_causal("bits_per_byte", model, tokenizer)
    check_causal("bits_per_byte", get_peft_model(made(CAUSAL["bert"]), lora), tokenizer)


@pytest.mark.parametrize(("kind", "causal"), [("gpt2", True), ("bert", False)])
def test_rounding_by_what_comes_after_is_not_looking_ahead(kind, causal, tokenizer):
    """As of experts, which multiply the tokens that chose them at once."""
    model = made(CAUSAL[kind] if causal else OTHERS[kind][0])

    def rounded(_module: Any, _args: Any, kwargs: Any, output: Any) -> None:
        output.logits = output.logits + 1e-6 * kwargs["input_ids"][0, -1]

    model.register_forward_hook(rounded, with_kwargs=True)
    if causal:
        check_causal("bits_per_byte", model, tokenizer)
    else:
        with pytest.raises(ValueError, match=LOOKS_AHEAD):
            check_causal("bits_per_byte", model, tokenizer)


def test_ids_that_the_model_does_not_have_are_refused(gpt2, make, tokenizer):
    bits_per_byte(gpt2, tokenizer, "the cat sat")
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens([f"<{number}>" for number in range(VOCABULARY)])
    highest = max(larger.get_vocab().values())
    said = f"model must have every id of the tokenizer, up to {highest}, got GPT2LMHeadModel with"
    with pytest.raises(
        ValueError, match=f"^bits_per_byte: {said} 320: load the tokenizer that"
    ):
        bits_per_byte(gpt2, larger, "the cat sat")
    gpt2.resize_token_embeddings(highest + 1)
    bits_per_byte(gpt2, larger, "the cat sat")
    gpt2.resize_token_embeddings(200)
    with pytest.raises(
        ValueError, match="^TestTimeFinetuner: model must have every id of the"
    ):
        make(gpt2)


def test_a_model_is_asked_once(gpt2, llama, make, tokenizer):
    calls: list[int] = []
    for model in (gpt2, llama):
        model.register_forward_pre_hook(
            lambda _module, _args, kwargs: calls.append(kwargs["input_ids"].numel()),
            with_kwargs=True,
        )
    make(gpt2)
    make(gpt2)
    assert calls == [2, 2]
    check_causal("bits_per_byte", llama, tokenizer)
    assert calls == [2, 2, 2, 2]
    bits_per_byte(gpt2, tokenizer, "the cat sat")
    assert len(calls) == 5


def test_nothing_of_the_model_or_its_surroundings_changes(tokenizer, bits):
    config = LlamaConfig(
        **GROUPED, rope_parameters={"rope_type": "dynamic", "factor": 2.0}
    )
    model = LlamaForCausalLM(config)
    model.train()
    model.model.layers[0].eval()
    # A longer text than the context, after which its frequencies are others.
    model(input_ids=torch.zeros((1, 100), dtype=torch.int64))
    modes = [module.training for module in model.modules()]
    rotary = model.model.rotary_emb
    kept, before, state = dict(vars(rotary)), bits(model), torch.get_rng_state()
    buffers = [(buffer, buffer._version) for buffer in model.buffers()]
    assert rotary.max_seq_len_cached == 100
    check_causal("bits_per_byte", model, tokenizer)
    assert [module.training for module in model.modules()] == modes
    assert all(vars(rotary)[name] is value for name, value in kept.items())
    assert not before.changed()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    after = list(model.buffers())
    assert all(
        b is a and b._version == v for (b, v), a in zip(buffers, after, strict=True)
    )
