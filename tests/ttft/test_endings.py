"""Where a completion ends, as text and while the model writes."""

from copy import deepcopy

import pytest
from transformers import TextIteratorStreamer

from hullft_ops.ttft.endings import Ending
from hullft_ops.ttft.prefix import Prefix, TokenRow
from hullft_ops.ttft.question import Question
from hullft_ops.ttft.techniques.ngrams import Ngrams
from hullft_ops.ttft.write import generate_rows, request_of

BODY = "    if x:\n        return 1\n\n    return 2\n"
CASES = [
    ("line", "x = ", "1\ny = 2", "1"),
    ("line", "def f():", "\n    return 1\n    pass", "\n    return 1"),
    ("line", "", "  \n", None),
    ("expression", "x = ", "1\ny = 2", "1"),
    ("expression", "x = ", "f(\n    1,\n)\ny = 2", "f(\n    1,\n)"),
    ("expression", "f(", "1,\n    '('\n)\ny", "1,\n    '('\n)"),
    ("expression", "", "\nx = [1", None),
    ("block", "def f():", f"\n{BODY}\ndef g", f"\n{BODY}".rstrip()),
    ("block", "    ", f"{BODY.lstrip()}x", BODY.strip()),
    ("block", "", f"{BODY}\n", None),
    ("block", "", "", None),
    ("block", "x = ", "1\n    y = 2", None),
]


@pytest.mark.parametrize(("stop_at", "line", "text", "expected"), CASES)
def test_a_text_ends_where_its_rule_says(stop_at, line, text, expected):
    ending = Ending(stop_at, line)
    end = ending.place(text)

    assert (end if end is None else text[:end]) == expected


@pytest.mark.parametrize(
    ("suffix", "text", "expected"),
    [
        (")\n    return x\n", "y)\n    return x\n", "y"),
        ("\n\n    b()\n    c()\n", "a()\n\n    b()\n    c()", "a()"),
        # One line may stand there twice.
        ("\n    b()\n    c()", "a()\n    b()\n    d()", None),
        (")", "f(x)\n", None),
    ],
)
def test_two_lines_of_the_suffix_are_not_written_again(suffix, text, expected):
    end = Ending(suffix=suffix).place(text)

    assert (end if end is None else text[:end]) == expected


@pytest.mark.parametrize(("stop_at", "line", "text", "expected"), CASES)
def test_what_is_settled_stays(stop_at, line, text, expected):
    ending = Ending(stop_at, line, suffix="\ny = 3\n")
    end = ending.place(text)
    whole = text if end is None else text[:end]
    for size in range(len(text) + 1):
        settled = ending.settled(text[:size])

        assert whole.startswith(text[:settled])
        assert text[:settled].rstrip() == text[: min(size, len(whole))].rstrip()


def test_nothing_ends_a_text_that_nobody_limits():
    assert not Ending()
    assert not Ending(suffix=")")
    assert Ending(suffix="a\nb")
    assert Ending("line")


CODE = "def f(x):\n    if g(\n        x,\n    ):\n        return 1\n    return 2\n\n\ny = f(3)\n"
OPTIONS = {"max_new_tokens": 60, "do_sample": False}


@pytest.fixture
def copier(copier_of):
    return copier_of(CODE)


@pytest.mark.parametrize(
    ("prompt", "stop_at", "expected"),
    [
        ("def f(x):", "line", "\n    if g("),
        ("def f(x):\n    if g", "expression", "(\n        x,\n    ):"),
        (
            "def f(x):\n    i",
            "block",
            "f g(\n        x,\n    ):\n        return 1\n    return 2",
        ),
    ],
)
def test_what_is_written_ends_there(copier, tokenizer, prompt, stop_at, expected):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    options = OPTIONS | {"stop_at": stop_at}
    with copier.adapted(CODE) as adaptation:
        written = adaptation.generate(prompt, streamer=streamer, **options)
        beam = adaptation.generate(prompt, num_beams=2, **options)

    assert written == expected
    assert "".join(streamer) == written
    assert Ending(stop_at, prompt.rpartition("\n")[2]).place(beam) is None
    assert copier.generate([prompt, "    return"], **options)[0] == written


def test_a_suffix_is_not_written_again(copier):
    language_model = copier.language_model
    ids = language_model.tokens("def f(x):\n    if").ids
    suffix = ":\n        return 1\n    return 2\n"
    question = Question("", ids, 0, start=0, cursor=len(ids), suffix=suffix)
    ngrams = Ngrams([language_model.tokens(CODE).ids], weights=[0.9] * 5)
    request = request_of(language_model, OPTIONS)
    [text] = generate_rows(
        language_model, [TokenRow([], question)], [Prefix([], [ngrams])], request
    )

    assert text == " g(\n        x,\n    )"


def test_a_mark_between_files_ends_a_text(gpt2, tokenizer, make):
    tokenizer = deepcopy(tokenizer)
    tokenizer.add_tokens("<|file_sep|>")
    mark = len(tokenizer) - 1
    finetuner = make(gpt2, n_select=0)
    finetuner.language_model.tokenizer = tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)

    def marked(ids, scores):
        scores = scores - scores
        scores[:, mark if ids.shape[1] > 4 else 40] = 9
        return scores

    options = OPTIONS | {"logits_processor": [marked], "streamer": streamer}
    text = finetuner.generate("the", **options | {"max_new_tokens": 8})

    assert set(text) == {tokenizer.decode([40])}
    assert "".join(streamer) == text
    assert "<" not in finetuner.language_model.vocabulary.content([mark, 41]).decode()
