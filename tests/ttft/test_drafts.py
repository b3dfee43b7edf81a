"""Texts that are written with drafts, in which several tokens take one pass."""

from functools import partial

import pytest
import torch
from scipy.stats import chisquare
from transformers import DynamicCache, GenerationConfig

from hullft_ops.ttft.drafts import Acceptance, DraftedWriting
from hullft_ops.ttft.models.hidden import HiddenStates
from hullft_ops.ttft.prefix import Draft
from hullft_ops.ttft.write import Mixing

PROMPT = "the cat sat on the red mat"
TEXT = f"{PROMPT} and ran to the park, and the dog sat on the blue mat " * 3
OPTIONS = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture
def passes(dynamic_llama):
    """The tokens of each pass, and whether it ran under autocast."""
    calls = []

    def listen(module, args, named):
        [tokens, *_] = named["input_ids"].tolist()
        calls.append((tokens, torch.is_autocast_enabled("cpu")))

    dynamic_llama.register_forward_pre_hook(listen, with_kwargs=True)
    return calls


@pytest.fixture
def make_copier(copier_of):
    """Reads its passage, too."""
    return partial(copier_of, TEXT, context=1)


def never(self, ids, length):
    return Draft()


def every_other(self, ids, length):
    return Draft([7], rate=0.98) if len(ids) % 2 else Draft()


def with_and_without(make_copier, monkeypatch, **options):
    """What is written with drafts, and one token at a time."""
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        with make_copier().adapted(TEXT) as adaptation:
            texts.append(adaptation.generate(PROMPT, **options))

        monkeypatch.setattr(Mixing, "draft", never)

    return texts


def test_a_text_takes_fewer_passes_than_tokens(make_copier, passes, monkeypatch):
    drafted, single = with_and_without(make_copier, monkeypatch, **OPTIONS)

    assert drafted == single
    assert len(drafted) > 24

    sizes = [len(tokens) for tokens, _ in passes]

    assert sizes[-20:] == [1] * 20
    assert len(sizes) - 24 < 24


def test_one_pass_reads_the_prompt_and_verifies_a_draft(make_copier, passes, tokenizer):
    prompt = tokenizer(PROMPT)["input_ids"]
    with make_copier().adapted(TEXT) as adaptation:
        passes.clear()
        adaptation.generate(PROMPT, **OPTIONS)

    # After the last token of the passage.
    [_, *first], _ = passes[0]

    assert first[: len(prompt)] == prompt
    assert len(first) > len(prompt) + 4


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 1.5, "top_k": 20},
        {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2},
        {"stop_strings": ["park", "no"]},
        {"min_new_tokens": 20},
        {
            "generation_config": GenerationConfig(
                do_sample=False, no_repeat_ngram_size=6
            )
        },
        {"stopping_criteria": [lambda ids, scores: ids[:, -1] == 283]},
        {"max_new_tokens": 1},
    ],
    ids=",".join,
)
def test_every_option_gives_the_text_of_one_token_at_a_time(
    make_copier, monkeypatch, options
):
    drafted, single = with_and_without(make_copier, monkeypatch, **OPTIONS | options)

    assert drafted == single != ""


def test_sampled_texts_have_the_models_distribution(llama):
    """Three tokens, each of the three likeliest, against the exact probabilities."""
    ids = torch.tensor([[5, 6, 7]])
    expected = {(): 1.0}
    for _ in range(3):
        expected = {
            (*text, token): share * p
            for text, share in expected.items()
            for token, p in three_likeliest(llama, [5, 6, 7, *text])
        }

    texts = list(expected)
    draft = list(texts[4])
    counts = dict.fromkeys(texts, 0)
    torch.manual_seed(0)
    for _ in range(500):
        writing = DraftedWriting(
            "past_key_values", draft, lambda ids, length: Draft(), HiddenStates()
        )
        output = writing(
            llama,
            ids,
            top_three,
            lambda ids, scores: torch.tensor([ids.shape[1] == 6]),
            GenerationConfig(do_sample=True, max_length=6),
            past_key_values=DynamicCache(),
        )
        counts[tuple(output[0, 3:].tolist())] += 1

    shares = [500 * expected[text] for text in texts]

    assert chisquare(list(counts.values()), shares).pvalue > 0.01


@torch.no_grad()
def three_likeliest(model, tokens):
    logits, likeliest = model(torch.tensor([tokens])).logits[0, -1].double().topk(3)
    return zip(likeliest.tolist(), logits.softmax(-1).tolist(), strict=True)


def top_three(ids, scores):
    least = scores.topk(3).values[:, -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def test_a_draft_is_as_long_as_its_kind_is_accepted():
    acceptance = Acceptance([1 + 0.2 * size for size in range(16)])
    for _ in range(60):
        acceptance.enter(2, accepted=0, drafted=1)
        acceptance.enter(32, accepted=15, drafted=15)

    sizes = [acceptance.best_size(Draft((), kind, rate=0.7)) for kind in (2, 4, 32)]

    assert sizes[0] == 0 < sizes[1] < sizes[2] == 15
    assert acceptance.best_size(Draft()) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 4},
        {"num_beams": 2},
        {"num_beams": 2, "do_sample": True},
        {"no_repeat_ngram_size": 3, "typical_p": 0.9},
        {"cache_implementation": "hybrid"},
    ],
    ids=str,
)
def test_every_option_uses_what_was_read(make_copier, passes, options):
    with make_copier().adapted(PROMPT) as adaptation:
        read = sum(len(tokens) for tokens, _ in passes)
        passes.clear()
        assert adaptation.generate(PROMPT, max_new_tokens=8, **options)

    assert len(passes[0][0]) < read / 2


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_some_options_read_passages_again(make_copier, passes, options):
    with make_copier().adapted(PROMPT) as adaptation:
        passes.clear()
        assert adaptation.generate(PROMPT, max_new_tokens=4, **options)

    assert len(passes[0][0]) > 50


@pytest.mark.parametrize("context", [0, 1])
def test_one_token_is_written_in_the_models_dtype_and_drafts_in_bfloat16(
    make_copier, passes, monkeypatch, context
):
    monkeypatch.setattr(Mixing, "draft", every_other)
    finetuner = make_copier(dtype="bfloat16", context=context)
    with finetuner.adapted(PROMPT) as adaptation:
        passes.clear()
        assert adaptation.generate(PROMPT, **OPTIONS)

    # The first reads the prompt.
    casts = {(len(tokens) > 1, is_cast) for tokens, is_cast in passes[1:]}

    assert casts == {(True, True), (False, False)}


def test_a_batch_is_read_and_written_in_bfloat16(make_copier, passes):
    finetuner = make_copier(dtype="bfloat16")
    # It is seen in the model's own dtype, once.
    assert finetuner.language_model.takes_padding

    passes.clear()
    texts = finetuner.generate([PROMPT, "the dog"], **OPTIONS)

    assert all(is_cast for _, is_cast in passes)
    assert any(len(tokens) > 50 for tokens, _ in passes)
    assert all(TEXT.count(text[:12]) for text in texts)
