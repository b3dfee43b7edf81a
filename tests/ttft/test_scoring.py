"""Bits per byte, against a computation that predicts one token at a time."""

import math
from itertools import chain

import pytest
import torch

from hullft_ops.ttft import language_model as model_module
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.loss import NonFiniteLossError
from hullft_ops.ttft.prefix import Passage, Prediction, Prefix
from hullft_ops.ttft.question import Question
from hullft_ops.ttft.scoring import score, score_text
from hullft_ops.ttft.techniques.ngrams import Ngrams

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
OF_BYTES = {"starts_whole": len("he"), "special": len("b")}
OF_WORDS = {"ascii": len("the "), "long": len("the ")}
FIRST_TOKEN_BYTES = {
    "byte_level": OF_BYTES,
    "byte_level_trimmed": OF_BYTES,
    "byte_fallback": dict.fromkeys(TEXTS, 0) | {"white_space": 1} | OF_WORDS,
    "byte_fallback_bare": {"starts_whole": len("he ")},
}
OPENED = ["byte_level_bos_eos", "byte_level_two_openers", "byte_fallback_bos"]


def opened_ids(tokenizer, text):
    """The tokens without one that ends the text, and how many special ones open it."""
    ids = tokenizer(text)["input_ids"]
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    opening = next(i for i in range(3) if ids[i : i + len(plain)] == plain)
    return ids[: opening + len(plain)], opening


@torch.no_grad()
def one_by_one(model, ids, window, first, head=(), ngrams=None):
    """One forward pass for every token, from the context that the window gives it."""
    nothing = Question("", [], opening=0, start=0, cursor=0)
    total = 0.0
    begin = 0
    for position in range(first, len(ids)):
        while position >= begin + window:
            begin += window // 2

        tokens = torch.tensor([[*head, *ids[begin:position]]])
        logits = model(tokens).logits[0, -1]
        log_p = logits.log_softmax(dim=-1)
        if ngrams is not None:
            written = torch.tensor(ids[begin:position])
            log_p = ngrams.mixed(nothing, written, Prediction(logits, None))

        total -= log_p[ids[position]].item()

    return total


@pytest.mark.parametrize("text", [TEXTS["accents"], TEXTS["special"], TEXTS["long"]])
@pytest.mark.parametrize("kind", ["byte_level", *OPENED])
@pytest.mark.parametrize("sizes", [(), (3,), (100,), (9, 5, 2)])
def test_each_token_is_predicted_once(gpt2, tokenizers, kind, text, sizes):
    """Whole passages stand before every window, as many as leave room for the text."""
    tokenizer = tokenizers[kind]
    ids, opening = opened_ids(tokenizer, text)
    passages = [[5 + (size + i) % 200 for i in range(size)] for size in sizes]
    prefix = Prefix([Passage("", ids) for ids in passages])
    scored = score(LanguageModel(gpt2.double(), tokenizer), text, prefix=prefix)

    room = max(CONTEXT - len(ids), CONTEXT // 2 - opening)
    while sum(map(len, passages)) > room:
        passages.pop(0)

    head = []
    first = max(opening, 1)
    if passages:
        head = [*ids[:opening], *chain.from_iterable(passages)]
        first -= opening
        ids = ids[opening:]

    window = CONTEXT - len(head)
    nll = one_by_one(gpt2, ids, window, first, head)
    bits = nll / math.log(2)

    assert scored.nll == pytest.approx(nll, rel=1e-12)
    assert scored.tokens == len(ids) - first
    assert scored.value == pytest.approx(bits / scored.bytes, rel=1e-12)


@pytest.mark.parametrize("has_ngrams", [False, True])
@pytest.mark.parametrize("length", [2, 7, 8, 32])
def test_windows(llama, tokenizer, length, has_ngrams):
    """N-grams see what the window holds."""
    text = TEXTS["long"]
    ids, _ = opened_ids(tokenizer, text)
    ngrams = Ngrams([ids]) if has_ngrams else None
    language_model = LanguageModel(llama.double(), tokenizer, length)
    prefix = Prefix(mixtures=[ngrams] if has_ngrams else [])
    scored = score(language_model, text, prefix=prefix)

    nll = one_by_one(llama, ids, length, 1, ngrams=ngrams)

    assert scored.nll == pytest.approx(nll, rel=1e-12)


@pytest.mark.parametrize("kind", ["byte_level", *OPENED])
@pytest.mark.parametrize("prompt", ["the dog", TEXTS["long"]])
@pytest.mark.parametrize("text", ["é", TEXTS["accents"], TEXTS["long"]])
def test_a_text_is_scored_after_a_prompt(gpt2, tokenizers, kind, prompt, text):
    """All of its bytes, and none of the prompt's."""
    tokenizer = tokenizers[kind]
    before, opening = opened_ids(tokenizer, prompt)
    tokens = opened_ids(tokenizer, text)[0][opening:]
    scored = score_text(gpt2.double(), tokenizer, text, after=prompt)

    ids = [*before, *tokens]
    nll = one_by_one(gpt2, ids, CONTEXT, len(before))

    assert scored.nll == pytest.approx(nll, rel=1e-12)
    assert scored.tokens == len(tokens)
    assert scored.bytes == len(text.encode())


@pytest.mark.parametrize("kind", [*FIRST_TOKEN_BYTES, *OPENED])
def test_bytes_are_those_of_the_scored_tokens(gpt2, tokenizers, kind):
    for name, text in TEXTS.items():
        first = 0
        if kind in FIRST_TOKEN_BYTES:
            first = FIRST_TOKEN_BYTES[kind].get(name, 1)

        scored = score_text(gpt2, tokenizers[kind], text)

        assert scored.bytes == len(text.encode()) - first, name


def test_a_space_that_the_tokenizer_adds_is_no_byte(gpt2, tokenizers):
    scored = score_text(gpt2, tokenizers["byte_level_prefix"], "the cat")

    assert scored.bytes == len(" cat")


@pytest.mark.parametrize("kind", ["byte_level", *OPENED])
@pytest.mark.parametrize("text", [TEXTS["ascii"], TEXTS["long"]])
def test_a_prefix_is_read_once(model, tokenizers, prefilled, read_by, kind, text):
    language_model = LanguageModel(model, tokenizers[kind])
    prefix = prefilled(language_model, [[40, 41, 42], [90, 91], [60]])
    passes = read_by(model)
    expected = score(language_model, text, prefix=Prefix(prefix.passages))
    whole = len(passes[-1][0])

    for _ in range(2):
        scored = score(language_model, text, prefix=prefix)

        assert scored.nll == pytest.approx(expected.nll, rel=1e-5)
        assert scored.tokens == expected.tokens
        # Its last token is read again: those logits predict the first of the text.
        assert len(passes[-1][0]) == whole - len(prefix.ids) + 1


def test_passages_are_read_in_parts(model, tokenizer, prefilled, read_by, monkeypatch):
    passages, text = [[40, 41, 42], [90, 91, 92, 60, 61]], TEXTS["ascii"]
    language_model = LanguageModel(model, tokenizer)
    passes = read_by(model)
    monkeypatch.setattr(model_module, "TOKENS_AT_ONCE", 3)
    prefix = prefilled(language_model, passages)

    assert passes == [[[40, 41, 42]], [[90, 91, 92]], [[60]]]

    expected = score(language_model, text, prefix=Prefix(prefix.passages))
    scored = score(language_model, text, prefix=prefix)

    assert scored.nll == pytest.approx(expected.nll, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, {}, "text must be a str, got NoneType"),
        ("a", {}, "text must have at least 2 tokens, got 'a' with 1"),
    ],
)
def test_bad_arguments_are_refused(gpt2, tokenizer, text, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        score_text(gpt2, tokenizer, text, **options)


def test_a_model_that_gives_nan_is_an_error(llama, tokenizer):
    torch.nn.init.constant_(llama.lm_head.weight, math.nan)

    with pytest.raises(NonFiniteLossError, match=r"the loss of 'the cat'\.\.\. is nan"):
        score_text(llama, tokenizer, "the cat")
