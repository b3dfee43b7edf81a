"""N-grams of the neighbours, mixed into scores and into what is written."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from hullft_ops.ttft import scoring
from hullft_ops.ttft.prefix import Prediction
from hullft_ops.ttft.question import Question
from hullft_ops.ttft.scoring import score
from hullft_ops.ttft.techniques.ngrams import Ngrams

PROMPT = "the cat sat on the"
NOTHING = Question("", [], opening=0, start=0, cursor=0)
texts_of_few_tokens = st.lists(st.integers(0, 3), max_size=9)


def slow_followers(texts, text, length):
    """How often each token follows the last ``length`` tokens of the text, which counts 8 times."""
    suffix = text[len(text) - length :]
    return Counter(
        other[end]
        for other in [*texts, *8 * [text]]
        for end in range(length, len(other))
        if other[end - length : end] == suffix
    )


def question_of(tokens, cursor):
    """A question whose text before the cursor are the first of these tokens, and the others."""
    question = Question("", [7, *tokens[:cursor], 8], 0, start=1, cursor=1 + cursor)
    return question, torch.tensor(tokens[cursor:], dtype=torch.long)


@given(
    st.lists(texts_of_few_tokens, max_size=4), texts_of_few_tokens, st.integers(0, 9)
)
def test_a_draft_continues_the_longest_ngram_that_occurs(texts, text, cursor):
    cursor = min(cursor, len(text))
    drafted = Ngrams(texts).draft(*question_of(text, cursor), 3)
    draft, length = drafted.tokens, drafted.kind or 0
    lengths = [n for n in (1, 2, 4, 8) if n <= len(text)]
    matches = [n for n in lengths if slow_followers(texts, text, n)]

    assert length == max(matches, default=0)
    assert bool(draft) == bool(matches)

    suffix = text[len(text) - length :]

    assert not draft or any(
        other[end - length : end + 3] == suffix + draft
        for other in [*texts, text]
        for end in range(length, len(other))
    )


def slow_mixture(ngrams_counts, weights, logits):
    """The formula, n-gram by n-gram."""
    mixture = logits.softmax(dim=-1)
    doubt = (1 - mixture.max()).sqrt()
    for counts, weight in zip(ngrams_counts, weights, strict=False):
        shares = torch.zeros_like(mixture)
        for token, count in counts.items():
            shares[token] = count / sum(counts.values())

        mixture = mixture + weight * doubt * (shares - mixture)

    return mixture


@given(st.lists(texts_of_few_tokens, max_size=4), texts_of_few_tokens)
def test_the_mixture_follows_the_formula(texts, text):
    weights = [0.1, 0.4, 0.3, 0.6]
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5, 1.1], dtype=torch.float64)
    tokens = torch.tensor(text, dtype=torch.long)
    mixture = Ngrams(texts, weights).mixed(NOTHING, tokens, Prediction(logits, None))
    lengths = [length for length in (1, 2, 4, 8) if length <= len(text)]
    counts = [slow_followers(texts, text, length) for length in lengths]
    expected = slow_mixture(filter(None, counts), weights, logits)

    torch.testing.assert_close(mixture.exp(), expected)


def test_a_model_that_is_certain_is_left_alone():
    logits = torch.tensor([0.0, 1000.0, 0.0])

    prediction = Prediction(logits, None)
    mixture = Ngrams([[1, 2]]).mixed(NOTHING, torch.tensor([1]), prediction)

    assert torch.equal(mixture, logits.log_softmax(dim=-1))


def test_a_forbidden_token_stays_forbidden():
    logits = torch.zeros(4)
    logits[2] = -torch.inf
    prediction = Prediction(logits, None)
    ngrams = Ngrams([[1, 2]], weights=[0.5])
    mixture = ngrams.mixed(NOTHING, torch.tensor([1]), prediction)

    assert mixture[2] == -torch.inf


@pytest.mark.parametrize("context", [0, 1])
def test_what_is_written_is_what_is_scored_as_greedy(
    model, tokenizer, make, store_of, context, monkeypatch, weigh_ngrams
):
    weigh_ngrams(0.6)
    greedy = []

    def watched(logits, targets, **options):
        greedy.extend((logits.argmax(dim=-1) == targets).tolist())
        return cross_entropy(logits, targets, **options)

    options = {"n_select": 0, "ngrams": 1}
    store = store_of(["red dog", "the cat", f"{PROMPT} mat and"])
    finetuner = make(model, store=store, context=context, **options)
    with finetuner.adapted(PROMPT) as adaptation:
        assert len(adaptation.passages) == context

        answer = adaptation.generate(PROMPT, do_sample=False, max_new_tokens=6)
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]

    # The weight while it writes.
    half = finetuner.with_config(replace(finetuner.config, ngrams=0.5))
    with half.adapted(PROMPT) as adaptation:
        monkeypatch.setattr(scoring, "cross_entropy", watched)
        adaptation.score(answer, after=PROMPT)

    none = finetuner.with_config(replace(finetuner.config, ngrams=0))
    alone = none.generate(PROMPT, do_sample=False, max_new_tokens=6)

    assert answer != alone
    # Written tokens may merge into others when they are read.
    assert len(tokens) == len(greedy) > 0
    assert all(greedy)


def test_they_lower_the_bits_of_a_text_that_the_neighbours_hold(llama, make, store):
    finetuner = make(llama, n_select=0, ngrams=1)
    text = store.texts[3]
    with finetuner.adapted(text[:20]) as adaptation:
        mixed = adaptation.score(text[20:])
        plain = score(finetuner.language_model, text[20:], after=adaptation.question)

    assert mixed.nll < plain.nll
