"""Bits per byte against a computation that predicts one token at a time."""

import copy
import logging
import math

import pytest
import torch
from tokenizers import normalizers, processors
from transformers import BloomConfig, BloomForCausalLM

from hullft_ops.ttft import bits_per_byte, score_text, tiny_lm_path

CONTEXT = 32
TEXTS = {
    "ascii": "the cat sat on the mat",
    "accents": "naïve café, déjà vu",
    "starts_split": "é is an e",
    "emoji": "😀😀 ☕",
    "white_space": "  two  spaces\n\n\tand lines ",
    "starts_whole": "he ran",
    "special": "before<s>after",
    "long": "the cat ran to the park and the dög sat — " * 4,
}
# UTF-8 bytes of the first token where they are not 1. A mark before the text holds 0.
FIRST_TOKEN_BYTES = {
    "byte_level": {"starts_whole": len("he"), "special": len("b")},
    "byte_fallback": {
        "ascii": len("the "),
        "accents": 0,
        "starts_split": 0,
        "emoji": 0,
        "starts_whole": 0,
        "special": 0,
        "long": len("the "),
    },
    "byte_fallback_bare": {"starts_whole": len("he ")},
}


def content_ids(tokenizer, text):
    """Tokens without a closing special one, and whether an opening one was added."""
    ids = tokenizer(text)["input_ids"]
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    opened = ids[: len(plain)] != plain
    return ids[: len(plain) + opened], opened


@torch.no_grad()
def naive_nll(model, ids, length, stride, head=(), first=1):
    """One forward pass for every token, from the context that the window gives it."""
    total, begin, end = 0.0, 0, length
    for position in range(first, len(ids)):
        while position >= end:
            begin, end = begin + stride, begin + stride + length
        logits = model(torch.tensor([[*head, *ids[begin:position]]])).logits[0, -1]
        total -= torch.log_softmax(logits.double(), dim=-1)[ids[position]].item()
    return total


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize(
    "kind", ["byte_level", "byte_level_bos_eos", "byte_fallback_bos"]
)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_it_is_the_naive_computation(request, tokenizers, architecture, kind, text):
    model, tokenizer = request.getfixturevalue(architecture).double(), tokenizers[kind]
    ids, _ = content_ids(tokenizer, text)
    score = score_text(model, tokenizer, text)
    assert score.nll == pytest.approx(
        naive_nll(model, ids, CONTEXT, CONTEXT // 2), rel=1e-12
    )
    assert score.tokens == len(ids) - 1
    assert bits_per_byte(model, tokenizer, text) == score.value
    assert score.value == pytest.approx(
        score.nll / math.log(2) / score.bytes, rel=1e-15
    )


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("size", [3, 12, 100])
@pytest.mark.parametrize(
    "kind", ["byte_level", "byte_level_bos_eos", "byte_fallback_bos"]
)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_prefix_is_a_context_for_the_same_tokens(
    request, tokenizers, architecture, kind, size, text
):
    model, tokenizer = request.getfixturevalue(architecture).double(), tokenizers[kind]
    ids, opened = content_ids(tokenizer, text)
    prefix = [5 + i % 200 for i in range(size)]
    room, half = CONTEXT - len(ids), CONTEXT // 2 - opened
    kept = prefix[-room:] if room >= half else prefix[-half:]
    head = [*ids[:opened], *kept]
    window = CONTEXT - len(head)
    wanted = naive_nll(model, ids[opened:], window, window // 2, head, first=1 - opened)
    score = score_text(model, tokenizer, text, prefix_ids=prefix)
    assert score.nll == pytest.approx(wanted, rel=1e-12)
    plain = score_text(model, tokenizer, text)
    assert (score.tokens, score.bytes) == (plain.tokens, plain.bytes)
    assert score.nll != plain.nll
    assert bits_per_byte(model, tokenizer, text, prefix_ids=prefix) == score.value
    assert score_text(model, tokenizer, text, prefix_ids=[]) == plain


@pytest.mark.parametrize(("length", "size"), [(2, 9), (3, 9), (4, 1), (4, 9), (5, 2)])
def test_a_prefix_leaves_a_window_of_two_tokens(llama, tokenizer, length, size):
    ids, _ = content_ids(tokenizer, TEXTS["long"])
    prefix = list(range(5, 5 + size))
    kept = min(size, length // 2, length - 2)
    head, window = prefix[size - kept :], length - kept
    score = score_text(
        llama.double(), tokenizer, TEXTS["long"], max_length=length, prefix_ids=prefix
    )
    wanted = naive_nll(llama, ids, window, window // 2, head)
    assert score.nll == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("length", "stride"), [(2, 1), (8, 1), (8, 7), (32, 5), (32, 31)]
)
def test_every_token_is_scored_once_whatever_the_window(
    llama, tokenizer, length, stride
):
    text = TEXTS["long"]
    ids, _ = content_ids(tokenizer, text)
    score = score_text(
        llama.double(), tokenizer, text, max_length=length, stride=stride
    )
    assert score.tokens == len(ids) - 1
    assert score.nll == pytest.approx(naive_nll(llama, ids, length, stride), rel=1e-12)


@pytest.mark.parametrize(("name", "text"), TEXTS.items(), ids=TEXTS.keys())
@pytest.mark.parametrize("kind", FIRST_TOKEN_BYTES)
def test_bytes_of_the_first_token_are_not_counted(gpt2, tokenizers, kind, name, text):
    wanted = len(text.encode()) - FIRST_TOKEN_BYTES[kind].get(name, 1)
    assert score_text(gpt2, tokenizers[kind], text).bytes == wanted


@pytest.mark.parametrize("name", ["ascii", "emoji", "white_space", "long"])
def test_bytes_do_not_depend_on_how_offsets_are_reported(gpt2, tokenizers, name):
    plain = score_text(gpt2, tokenizers["byte_level"], TEXTS[name])
    assert score_text(gpt2, tokenizers["byte_level_trimmed"], TEXTS[name]) == plain


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("kind", ["byte_level_bos_eos", "byte_fallback_bos"])
def test_all_bytes_count_after_a_special_token(gpt2, tokenizers, kind, text):
    assert score_text(gpt2, tokenizers[kind], text).bytes == len(text.encode())


def test_the_space_that_a_tokenizer_puts_before_a_text_is_no_byte(gpt2, tokenizers):
    tokenizer = tokenizers["byte_level_prefix"]
    assert tokenizer.tokenize("the cat") == ["Ġthe", "Ġcat"]
    assert score_text(gpt2, tokenizer, "the cat").bytes == len(" cat")


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_prefix"])
def test_bytes_are_the_texts_whatever_the_tokenizer_makes_of_it(gpt2, tokenizers, kind):
    """Normalized, or after a special token with a space before it."""
    tokenizer = copy.deepcopy(tokenizers[kind])
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.NFC()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    text = "e\u0301te\u0301 and nai\u0308ve"
    assert score_text(gpt2, tokenizer, text).bytes == len(text.encode())


def test_opening_special_tokens_are_not_scored_however_many(gpt2, tokenizers):
    tokenizer = tokenizers["byte_level_two_openers"]
    assert len(tokenizer("he ran")["input_ids"]) == 4
    score = score_text(gpt2, tokenizer, "he ran")
    assert (score.tokens, score.bytes) == (2, len("he ran"))


def test_an_added_token_has_the_bytes_of_its_text(gpt2, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["→"])
    assert tokenizer.tokenize("a→b") == ["a", "→", "b"]
    assert score_text(gpt2, tokenizer, "a→b").bytes == len("→b".encode())


def test_the_loss_of_a_half_precision_model_is_computed_in_single(llama, tokenizer):
    ids = torch.tensor([tokenizer("the cat sat")["input_ids"]])
    with torch.no_grad():
        logits = llama.bfloat16()(ids).logits[0, :-1].double()
    wanted = -torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None]).sum().item()
    assert score_text(llama, tokenizer, "the cat sat").nll == pytest.approx(
        wanted, rel=1e-6
    )


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary(llama, tokenizer):
    torch.nn.init.zeros_(llama.lm_head.weight)
    score = score_text(llama, tokenizer, "the cat sat on the mat")
    assert score.value == pytest.approx(
        score.tokens * math.log2(320) / score.bytes, rel=1e-6
    )


def test_the_model_keeps_its_modes_and_records_no_gradients(gpt2, tokenizer):
    gpt2.train()
    gpt2.transformer.h[0].eval()
    modes = [module.training for module in gpt2.modules()]
    recorded = []
    gpt2.register_forward_hook(
        lambda module, args, out: recorded.append(out.logits.requires_grad)
    )
    first = bits_per_byte(gpt2, tokenizer, TEXTS["long"])
    assert bits_per_byte(gpt2, tokenizer, TEXTS["long"]) == first, "dropout is off"
    assert [module.training for module in gpt2.modules()] == modes
    assert set(recorded) == {False}


def test_long_texts_pass_without_a_warning(gpt2, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_max_length", CONTEXT)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    score_text(gpt2, tokenizer, TEXTS["long"])
    assert caplog.records == []


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        (None, {}, TypeError, "text must be a str, got NoneType"),
        (
            "a \udcff",
            {},
            ValueError,
            "text must be valid Unicode: .*surrogates not allowed",
        ),
        ("", {}, ValueError, "text must have at least 2 tokens, got '' with 0"),
        ("a", {}, ValueError, "text must have at least 2 tokens, got 'a' with 1"),
        ("ab c", {"max_length": 1}, ValueError, "max_length must be .*, got 1"),
        (
            "ab c",
            {"max_length": 33},
            ValueError,
            "max_length is 33, the model's context is 32",
        ),
        (
            "ab c",
            {"max_length": 8.0},
            TypeError,
            "max_length must be an int, got float",
        ),
        ("ab c", {"stride": 0}, ValueError, "stride must be .*, got 0"),
        (
            "ab c",
            {"stride": 32},
            ValueError,
            "stride must be below max_length 32, got 32",
        ),
        (
            "ab c",
            {"stride": 29, "prefix_ids": [5] * 3},
            ValueError,
            "stride must be below max_length 32, less the prefix of 3 tokens, got 29",
        ),
        (
            "ab c",
            {"prefix_ids": [320]},
            ValueError,
            r"each of prefix_ids must be in 0..2\d\d, got",
        ),
        (
            "ab c",
            {"prefix_ids": ["a"]},
            TypeError,
            "each of prefix_ids must be an int, got str",
        ),
        (
            "ab c",
            {"max_length": 8, "stride": 8},
            ValueError,
            "stride must be below max_length 8, got 8",
        ),
    ],
)
def test_bad_arguments_are_refused(gpt2, tokenizer, text, options, error, message):
    for function in (bits_per_byte, score_text):
        with pytest.raises(error, match=f"^{function.__name__}: {message}"):
            function(gpt2, tokenizer, text, **options)


def test_only_special_tokens_are_nothing_to_score(gpt2, tokenizers):
    with pytest.raises(ValueError, match="must have at least 1 token, got '' with 0"):
        bits_per_byte(gpt2, tokenizers["byte_level_bos_eos"], "")


def test_one_token_after_a_special_one_is_scored(gpt2, tokenizers):
    score = score_text(gpt2, tokenizers["byte_level_bos_eos"], "a")
    assert (score.tokens, score.bytes) == (1, 1)


def test_a_model_that_gives_nan_is_an_error(llama, tokenizer):
    torch.nn.init.constant_(llama.lm_head.weight, math.nan)
    with pytest.raises(RuntimeError, match=r"the loss of 'the cat'\.\.\. is nan"):
        bits_per_byte(llama, tokenizer, "the cat")


def test_the_tokenizer_limits_a_model_without_a_limit(tokenizer, monkeypatch):
    torch.manual_seed(0)
    bloom = BloomForCausalLM(
        BloomConfig(vocab_size=320, hidden_size=16, n_layer=1, n_head=2)
    )
    with pytest.raises(ValueError, match="max_length must be given"):
        bits_per_byte(bloom, tokenizer, TEXTS["long"])
    given = bits_per_byte(bloom, tokenizer, TEXTS["long"], max_length=16)
    monkeypatch.setattr(tokenizer, "model_max_length", 16)
    assert bits_per_byte(bloom, tokenizer, TEXTS["long"]) == given


def test_the_tiny_model_is_there():
    assert (tiny_lm_path() / "config.json").is_file()
