"""Prompts that end within a token, and what is written after them."""

from itertools import chain

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hullft_ops.ttft import TestTimeFinetuner
from hullft_ops.ttft.endings import Ending
from hullft_ops.ttft.healing import Healing, Limits, Vocabulary
from hullft_ops.ttft.prefix import TokenRow
from hullft_ops.ttft.question import Question
from hullft_ops.ttft.techniques.technique import prefix_of
from hullft_ops.ttft.write import generate_rows, request_of

# Every kind of end that a prompt may have: within a word, after spaces, tabs and newlines, and in
# an emoji of two.
TEXT = "the cat sat\n    on the red\tmat 👩‍🚀 and  ran\n\n  to the park, the dog"
# Stands for a part of a character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
KINDS = [
    "byte_level",
    "byte_level_trimmed",
    "byte_level_prefix",
    "byte_level_bos_eos",
    "byte_level_two_openers",
    "byte_fallback",
    "byte_fallback_bare",
    "byte_fallback_bos",
]


@pytest.fixture(params=KINDS)
def tokenizer(tokenizers, request):
    return tokenizers[request.param]


@pytest.fixture
def text(tokenizer):
    """SentencePiece's kind here decodes no bytes."""
    is_whole = tokenizer.decode(tokenizer(TEXT)["input_ids"], True).strip() == TEXT
    return TEXT if is_whole else "the cat sat on the red mat  and ran to the   park "


@pytest.fixture
def copier(copier_of, text):
    return copier_of(text)


def test_tokens_stand_for_the_bytes_of_a_text(tokenizer):
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    special = tokenizer.all_special_ids

    assert Vocabulary(tokenizer).content(tokens).decode().removeprefix(" ") == TEXT
    assert Vocabulary(tokenizer).content([*special, *tokens]) == b""


@pytest.mark.parametrize("share", range(10, 66, 6))
def test_a_healed_prompt_is_continued_as_one_cut_at_the_boundary(copier, text, share):
    prompt = text[: len(text) * share // 100]
    language_model = copier.language_model
    tokens = language_model.tokens(prompt).ids
    count = language_model.vocabulary.taken_back(tokens)

    assert 0 < count < len(tokens)

    options = {"do_sample": False, "max_new_tokens": 8}
    with copier.adapted(text) as adaptation:
        answer = adaptation.generate(prompt, **options)
        cursor = len(tokens) - count
        row = TokenRow(
            [], Question(prompt, tokens[:cursor], opening=0, start=0, cursor=cursor)
        )
        prefix = prefix_of(copier.prepare(copier.retrieve(text)))
        request = request_of(language_model, options | {"token_healing": False})
        [cut] = generate_rows(language_model, [row], [prefix], request)

    before = language_model.tokenizer.decode(row.ids, skip_special_tokens=True).lstrip()
    # A character may be cut, too.
    if REPLACEMENT not in before:
        assert text.startswith((before + cut).rstrip(REPLACEMENT))
        assert (prompt + answer).startswith((before + cut).rstrip(REPLACEMENT))

    assert text.removeprefix(prompt).startswith(answer.rstrip(REPLACEMENT))
    assert answer


def test_what_is_held_is_written_whatever_else_is_forbidden(copier):
    vocabulary = copier.language_model.vocabulary
    tokens = copier.language_model.tokens("the cat sat").ids
    count = vocabulary.taken_back(tokens)
    held = vocabulary.content(tokens[-count:])
    healing = Healing(
        vocabulary, [held], [Ending()], len(tokens) - count, Limits(longest=1)
    )
    scores = healing(torch.tensor([tokens[:-count]]), torch.full((1, 320), -torch.inf))
    [allowed] = scores.isfinite()

    assert set(allowed.nonzero().flatten().tolist()) == {
        token
        for token in range(320)
        if (content := vocabulary.content([token]))
        and (content.startswith(held) or held.startswith(content))
    }


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"do_sample": True, "temperature": 0.1, "top_k": 3},
        {"stop_strings": "red"},
        {"min_new_tokens": 4},
        {"max_new_tokens": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [12, 23])
def test_limits_count_from_the_end_of_the_prompt(copier, text, length, options):
    prompt = text[:length]
    torch.manual_seed(0)
    options = {"max_new_tokens": 10, "do_sample": False} | options
    streamer = Streamer()
    if "num_beams" not in options:
        options["streamer"] = streamer

    with copier.adapted(text) as adaptation:
        answer = adaptation.generate(prompt, **options)

    new = text.removeprefix(prompt)

    assert new.startswith(answer)
    assert answer

    if "stop_strings" in options:
        # Not where it begins in the prompt; a token may go on after it.
        assert "red" not in answer[:-4]

    if streamer.puts:
        reads, *writes, end = streamer.puts

        assert len(writes) <= options["max_new_tokens"]

        decoded = copier.tokenizer.batch_decode(
            [reads, [*reads, *chain.from_iterable(writes)]], skip_special_tokens=True
        )

        assert [each.lstrip() for each in decoded] == [prompt, prompt + answer]
        assert end is None


class Streamer:
    """Keeps what it is given."""

    def __init__(self):
        self.puts = []

    def put(self, value):
        self.puts.append(value.flatten().tolist())

    def end(self):
        self.puts.append(None)


@pytest.mark.parametrize("stop_at", [None, "line"])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_stream_has_the_text_where_tokens_split_a_character(
    dynamic_llama, stop_at, missing
):
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The second stands for a space and the first two bytes of a quotation mark.
    names = [*characters, "Ġâ", "ĠâĢ"]
    vocabulary = {name: token for token, name in enumerate(names)}
    model = models.BPE(vocabulary, [("Ġ", "â"), ("Ġâ", "Ģ")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    new = tokenizer("a “")["input_ids"][1:]
    finetuner = TestTimeFinetuner(
        dynamic_llama, tokenizer, context=0, ngrams=0, train_on_prompt=0, n_select=0
    )
    streamer = Streamer()
    answer = finetuner.generate(
        "a ",
        streamer=streamer,
        max_new_tokens=len(new) - missing,
        stop_at=stop_at,
        prefix_allowed_tokens_fn=lambda _, row: [new[len(row) - 1]],
    )

    assert new[0] == 257
    assert answer == (REPLACEMENT if missing else "“")
    assert tokenizer.decode(list(chain(*streamer.puts[1:-1]))) == answer

    if stop_at is None:
        assert len(streamer.puts) == 2 + len(new) - missing


def test_a_list_and_a_chat_are_healed_too(copier, text, monkeypatch):
    template = "{{ messages[0].content }}"
    monkeypatch.setattr(copier.tokenizer, "chat_template", template)
    prompts = [text[:length] for length in (9, 12, 23)]
    options = {"do_sample": False, "max_new_tokens": 5}
    texts = copier.generate(prompts, **options)

    assert texts == [copier.generate(prompt, **options) for prompt in prompts]
    assert texts == [copier.generate(p, chat=True, **options) for p in prompts]
    assert all(
        text.startswith(prompt + answer)
        for prompt, answer in zip(prompts, texts, strict=True)
    )
