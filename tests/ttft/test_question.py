"""A prompt, understood: what a model reads of it, and where the cursor stands."""

from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch

from hullft_ops.ttft import Prepared, Technique, question_of
from hullft_ops.ttft.infill import split_at_marks
from hullft_ops.ttft.techniques import TECHNIQUES

QWEN = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
CODESTRAL = ["[SUFFIX]", "[PREFIX]"]
PREFIX, SUFFIX = "the cat sat", " on the red mat"
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"


@pytest.fixture(params=["byte_level", "byte_level_bos_eos", "byte_fallback_bos"])
def tokenizer_of(tokenizers, request):
    """Makes a tokenizer that has these tokens too, which are not special."""

    def make(names):
        tokenizer = deepcopy(tokenizers[request.param])
        tokenizer.add_tokens(names)
        return tokenizer

    return make


@pytest.mark.parametrize("names", [QWEN, CODESTRAL])
def test_a_suffix_stands_between_the_models_marks(tokenizer_of, names):
    tokenizer = tokenizer_of(names)
    question = question_of(tokenizer, PREFIX, suffix=SUFFIX)
    marks = tokenizer.convert_tokens_to_ids(names)
    before = question.before_cursor.tolist()
    behind = question.ids[question.suffix_start : question.suffix_end]

    assert tokenizer.decode(before).strip() == PREFIX
    assert tokenizer.decode([*before, *behind]).strip() == PREFIX + SUFFIX
    assert [token for token in question.ids if token in marks] == marks
    assert question.text == PREFIX
    assert question.ids[question.opening] in marks


@pytest.mark.parametrize("names", [QWEN, CODESTRAL])
def test_in_a_short_window_both_texts_lose_their_far_ends_three_to_one(
    tokenizer_of, names
):
    question = question_of(tokenizer_of(names), PREFIX, suffix=SUFFIX)
    before = question.before_cursor.tolist()
    behind = question.ids[question.suffix_start : question.suffix_end]
    others = len(question.ids) - len(before) - len(behind)
    for room in range(others, len(question.ids) + 1):
        fitted = question.fitted(room)
        left = fitted.before_cursor.tolist()
        right = fitted.ids[fitted.suffix_start : fitted.suffix_end]

        assert len(fitted.ids) == room
        assert len(right) == max((room - others) // 4, room - others - len(before))
        assert left == before[len(before) - len(left) :]
        assert right == behind[: len(right)]


def test_a_mark_in_a_text_is_text(tokenizer_of):
    tokenizer = tokenizer_of(QWEN)
    special = tokenizer.all_special_tokens[0]
    texts = [f"a {QWEN[2]} b{special}c", f"{QWEN[0]}{QWEN[1]}"]
    question = question_of(tokenizer, texts[0], suffix=texts[1])
    marks = tokenizer.convert_tokens_to_ids(QWEN)

    assert [token for token in question.ids if token in marks] == marks
    assert tokenizer.decode(question.before_cursor).strip() == texts[0]
    assert tokenizer.convert_tokens_to_ids(special) not in question.before_cursor


def test_a_model_without_marks_reads_the_text_before_the_cursor_and_says_so(
    gpt2, make, tokenizer
):
    finetuner = make(gpt2, n_select=0, context=1)
    options = {"max_new_tokens": 4, "do_sample": False}
    with pytest.warns(UserWarning, match="no tokens to fill in with"):
        text = finetuner.generate(PREFIX, suffix=SUFFIX, **options)

    assert text == finetuner.generate(PREFIX, **options)


@pytest.mark.parametrize("ngrams", [0, 1])
def test_a_text_is_scored_and_written_at_the_cursor(
    llama, make, tokenizer, monkeypatch, ngrams
):
    vocabulary = tokenizer.get_vocab() | {name: 40 + i for i, name in enumerate(QWEN)}
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: vocabulary)
    finetuner = make(llama, n_select=0, ngrams=ngrams)
    with finetuner.adapted(PREFIX, suffix=SUFFIX) as adaptation:
        ids = adaptation.question.ids
        scored = adaptation.score(PREFIX)
        written = adaptation.generate(max_new_tokens=4, do_sample=False)

    assert ids[-1] == 42

    if not ngrams:
        text = torch.tensor([[*ids, *tokenizer(PREFIX)["input_ids"]]])
        logits = llama(text).logits[0, len(ids) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(
            logits, text[0, len(ids) :], reduction="sum"
        )

        assert scored.nll == pytest.approx(nll.item(), rel=1e-5)

    options = {"max_new_tokens": 4, "do_sample": False}

    assert finetuner.generate(PREFIX, suffix=SUFFIX, **options) == written


def test_a_template_is_rendered_once(llama, make, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    render, calls = tokenizer.apply_chat_template, []

    def counted(*args, **options):
        calls.append(args)
        return render(*args, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    finetuner = make(llama, n_select=2, context=1, ngrams=1, train_on_prompt=1)
    with finetuner.adapted("  the cat sat", chat=True) as adaptation:
        adaptation.generate(max_new_tokens=2)
        adaptation.score(" on the mat")

    assert len(calls) == 1
    assert tokenizer.decode(adaptation.question.ids) == render(
        [{"role": "user", "content": "  the cat sat"}], tokenize=False
    )


def test_another_prompt_must_open_as_the_passages_were_read(
    llama, make, tokenizer, monkeypatch
):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    finetuner = make(llama, n_select=0, context=1)
    with finetuner.adapted(PREFIX) as adaptation:
        with pytest.raises(ValueError, match="generate: the prompt must open as the"):
            adaptation.generate("the dog", chat=True)

        assert adaptation.generate("the dog", max_new_tokens=2)

    with finetuner.adapted(PREFIX, chat=True) as adaptation:
        with pytest.raises(ValueError, match="generate: the prompt must open as the"):
            adaptation.generate("the dog")

        assert adaptation.generate("the dog", chat=True, max_new_tokens=2)

    with pytest.raises(ValueError, match="suffix and chat are of a text, got a quest"):
        question_of(tokenizer, adaptation.question, suffix=SUFFIX)

    with pytest.raises(ValueError, match="suffix must be empty for a conversation"):
        question_of(tokenizer, PREFIX, suffix=SUFFIX, chat=True)


@dataclass
class Watched:
    """A mixture that keeps what it is given, and changes nothing."""

    seen: list

    def mixed(self, question, written, prediction):
        self.seen.append((question, prediction))
        return prediction.logits

    def while_writing(self):
        return self


class Watching(Technique):
    trains = False

    def __init__(self):
        self.seen = []

    def prepare(self, neighbours, language_model):
        return Prepared(mixture=Watched(self.seen))


def test_a_technique_may_stand_behind_the_packages_own(llama, make):
    first, last = Watching(), Watching()
    finetuner = make(llama, n_select=0, ngrams=1, techniques=(first, *TECHNIQUES, last))
    with finetuner.adapted(PREFIX) as adaptation:
        adaptation.score(SUFFIX)

    assert len(first.seen) == len(last.seen) > 0
    for (_, before), (question, after) in zip(first.seen, last.seen, strict=True):
        # N-grams stand between the two.
        assert not torch.equal(before.logits, after.logits)
        assert torch.equal(before.hidden, after.hidden)
        assert question.before_cursor.tolist() == list(question.ids)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x<|fim_prefix|>a <|fim_suffix|>b<|fim_middle|>", ("x", "a ", "b")),
        ("<PRE> a <SUF>b <MID>", ("", " a", "b")),
        ("[SUFFIX]b[PREFIX]a", ("", "a", "b")),
        ("a<|fim_suffix|>b", ("", "a<|fim_suffix|>b", "")),
    ],
)
def test_marks_that_a_client_writes_split_a_text(text, parts):
    assert split_at_marks(text) == parts
