"""Continuing a prompt with the adapted model, after retrieved passages."""

from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from transformers import GenerationConfig

from hullft_ops.ttft import TestTimeFinetuner, load_model, write
from hullft_ops.ttft.chat import chat_text, conversation
from hullft_ops.ttft.language_model import LanguageModel
from hullft_ops.ttft.prefix import Prefix
from hullft_ops.ttft.question import question_of
from hullft_ops.ttft.write import continue_questions

CONTEXT = 32
PROMPT = "the cat sat on the red mat"
NOTHING = Prefix()
OPTIONS = {"max_new_tokens": 8, "do_sample": False}
UNHEALED = OPTIONS | {"token_healing": False}


def continued(language_model, prompt, prefix=NOTHING, **options):
    """What the model writes after a prompt."""
    question = question_of(language_model.tokenizer, prompt)
    [text] = continue_questions(language_model, [question], [prefix], **options)
    return text


def test_the_adapted_model_continues_and_is_restored(model, tokenizer, make):
    finetuner = make(model, n_select=20)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with finetuner.adapted(PROMPT) as adaptation:
        inside = adaptation.generate(PROMPT, **UNHEALED)
        output = model.generate(input_ids=ids, pad_token_id=2, **OPTIONS)

    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)

    assert inside == expected

    model.train()

    assert finetuner.generate(PROMPT, **UNHEALED) == inside
    assert all(module.training for module in model.modules())

    assert continued(finetuner.language_model, PROMPT, **UNHEALED) != inside


TEMPLATE = "{{ bos_token }}user: {{ messages[0].content }} assistant:"


def test_a_message_stands_in_the_chat_template(tokenizers, monkeypatch):
    written = "user: the cat sat assistant:"
    for kind, message in (
        ("byte_level", f"<s>{written}"),
        # This tokenizer writes the token itself.
        ("byte_level_bos_eos", written),
    ):
        monkeypatch.setattr(tokenizers[kind], "chat_template", TEMPLATE)
        text, place = chat_text(tokenizers[kind], *conversation("the cat sat"))

        assert text == message
        assert text[place:] == "the cat sat assistant:"


def read_rows(language_model, rows, prefixes, request):
    """In place of what a model writes, what it reads."""
    return [language_model.tokenizer.decode(row.ids) for row in rows]


def test_the_nearest_passages_that_fit_stand_before_the_message(
    gpt2, tokenizer, make, store_of, monkeypatch
):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    monkeypatch.setattr(write, "generate_rows", read_rows)
    finetuner = make(gpt2, store=store_of(["ran", "the cat"]), n_select=0, context=2)
    with finetuner.adapted("the cat", chat=True) as adaptation:
        passages = [each.text for each in adaptation.passages]
        texts = ["".join(passages[first:]) for first in range(3)]
        # The message's first token has its space.
        chats = [f"<s>user:{text} the cat assistant:" for text in texts]
        read = [
            adaptation.generate(max_new_tokens=CONTEXT - room)
            for room in range(len(adaptation.question.ids), CONTEXT)
        ]

    # The more room, the more passages; as before any text, they may take half of it.
    assert [text for text in dict.fromkeys(read) if text in chats] == chats[::-1]


def test_passages_stand_before_the_last_message_of_the_user(
    dynamic_llama, tokenizer, store_of, embedder, monkeypatch
):
    template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    monkeypatch.setattr(write, "generate_rows", read_rows)
    dynamic_llama.config.max_position_embeddings = 256
    options = {"n_select": 0, "context": 1}
    finetuner = TestTimeFinetuner(
        dynamic_llama, tokenizer, store_of(["a tree", "the cat"]), embedder, **options
    )
    user, answer = {"role": "user"}, {"role": "assistant", "content": "no"}
    chat = [user | {"content": "a tree"}, answer, user | {"content": "the cat"}, answer]
    expected = "u:a tree;a:no;u:the cat\n\nthe cat;a:no;"

    assert finetuner.generate(chat) == expected
    assert finetuner.generate(["the cat", chat], chat=True) == [
        "u:the cat\n\nthe cat;",
        expected,
    ]


def test_a_template_that_writes_the_message_twice_has_passages_before_it_all(
    dynamic_llama, tokenizer, make, store_of, monkeypatch
):
    template = "{% for m in messages %}{{ m.content }};{{ m.content }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    monkeypatch.setattr(write, "generate_rows", read_rows)
    store = store_of(["a tree"])
    finetuner = make(dynamic_llama, store=store, n_select=0, context=1)

    assert finetuner.generate("the", chat=True, max_new_tokens=1) == (
        "a tree\n\nthe;the"
    )


def test_no_space_is_cleaned_out_of_a_text(gpt2, tokenizer, make, monkeypatch):
    """As tokenizers of other kinds than BPE do, also across the end of the prompt."""
    cleans = "clean_up_tokenization_spaces"
    monkeypatch.setattr(tokenizer, cleans, True)
    forced = f"{cleans}_for_bpe_even_though_it_will_corrupt_output"
    monkeypatch.setattr(tokenizer, forced, True)
    prompt, text = "the cat ", ", x . y"
    ids = tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]
    written = make(gpt2, n_select=0).generate(
        prompt,
        max_new_tokens=len(ids[1]),
        token_healing=False,
        prefix_allowed_tokens_fn=lambda _, row: [ids[1][len(row) - len(ids[0])]],
    )

    assert written == text


def test_a_batch_gives_the_texts_of_one_at_a_time(store_of, embedder):
    """In float32, with a penalty for what was written before, which padding must not change."""
    texts = [f"def area_{n}(side):\n    return {n} * side\n" for n in range(12)]
    prompts = [f"{text * (n % 4)}def area_{n}" for n, text in enumerate(texts)]
    options = {"max_new_tokens": 8, "do_sample": False, "repetition_penalty": 1.3}
    settings = {"train_on_prompt": 0, "context": 2, "dtype": None}
    finetuner = TestTimeFinetuner(
        *load_model(None), store_of(texts), embedder, **settings
    )
    single = []
    for prompt in prompts:
        with finetuner.adapted(prompt) as adaptation:
            single.append(adaptation.generate(prompt, **options))

    with patch.object(finetuner, "retrieve", wraps=finetuner.retrieve) as retrieve:
        assert finetuner.generate(prompts, batch_size=5, **options) == single

    assert retrieve.call_count == 12
    assert len(set(single)) == 4


def test_prompts_of_like_length_are_continued_together(gpt2, make, read_by):
    passes = read_by(gpt2)
    finetuner = make(gpt2, n_select=0)
    prompts = ["1" * length for length in (9, 3, 8, 2, 5)]
    options = {"batch_size": 2, "max_new_tokens": 1, "token_healing": False}
    answers = finetuner.generate_each(prompts, **options)

    assert [position for position, _ in answers] == [3, 1, 4, 2, 0]
    # Of a batch, all but the last tokens are read before.
    shapes = [(len(rows), len(rows[0])) for rows in passes]

    assert shapes[-5::2] == [(2, 2), (2, 7), (1, 9)]


def test_the_model_adapts_to_each_prompt_of_a_list(gpt2, make):
    prompts = ["the cat sat", "a dog ran to the park"]
    finetuner = make(gpt2)
    texts = []
    for prompt in prompts:
        with finetuner.adapted(prompt) as adaptation:
            texts.append(adaptation.generate(prompt, **OPTIONS))

    assert finetuner.generate(prompts, **OPTIONS) == texts
    assert finetuner.generate([]) == []


@pytest.mark.parametrize(
    ("kind", "prompt", "new_tokens", "expected"),
    [
        ("byte_level", "he ran to", 1, "1 2 3 4 5 he Ġran Ġto"),
        ("byte_level", "he ran to", 3, "3 4 5 he Ġran Ġto"),
        ("byte_level", "he ran to", 8, "Ġran Ġto"),
        ("byte_level_bos_eos", "he ran to", 2, "<s> 3 4 5 he Ġran Ġto"),
        ("byte_level_bos_eos", "he ran to</s>", 7, "Ġran Ġto </s>"),
        ("byte_level_bos_eos", "", 8, "<s>"),
    ],
)
def test_the_nearest_passages_that_leave_room_stand_before_the_prompt(
    gpt2, tokenizers, prefilled, read_by, kind, prompt, new_tokens, expected
):
    """The window has 10 tokens. The token that ends a text is not continued."""
    tokenizer = tokenizers[kind]
    passages = [tokenizer.convert_tokens_to_ids(list(text)) for text in ("12", "345")]
    language_model = LanguageModel(gpt2, tokenizer, 10)
    prefix = prefilled(language_model, passages)
    passes = read_by(gpt2)
    # With a cache of transformers' own, the model reads every token again.
    options = {"use_cache": False, "max_new_tokens": new_tokens, "token_healing": False}
    continued(language_model, prompt, prefix, **options)

    assert " ".join(tokenizer.convert_ids_to_tokens(passes[0][0])) == expected


def test_of_a_prompt_that_is_too_long_the_end_is_read(gpt2, tokenizer, monkeypatch):
    monkeypatch.setattr(write, "generate_rows", read_rows)
    language_model = LanguageModel(gpt2, tokenizer, 10)
    with pytest.warns(UserWarning, match="has 11 tokens: the model reads the last 2"):
        text = continued(language_model, PROMPT, max_new_tokens=8)

    assert text == tokenizer.decode(tokenizer(PROMPT)["input_ids"][-2:])


def test_passages_that_were_read_are_not_read_again(
    model, tokenizer, prefilled, read_by
):
    language_model = LanguageModel(model.double(), tokenizer)
    prefix = prefilled(language_model, [[40, 41, 42], [90, 91]])
    passes = read_by(model)
    expected = continued(language_model, "the cat", prefix, use_cache=False, **UNHEALED)
    [[whole], *_] = passes

    for _ in range(2):
        passes.clear()

        assert continued(language_model, "the cat", prefix, **UNHEALED) == expected
        assert passes[0] == [whole[len(prefix.ids) - 1 :]]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (3, {}, "prompt must be a str, got int"),
        ("", {}, "prompt must have a token, got ''"),
        ("a", {"max_new_tokens": 32}, r"max_new_tokens must be in 1\.\.31, got 32"),
        (
            "a",
            {"max_length": 9},
            "max_length must be None: max_new_tokens counts behind",
        ),
        ("a", {"stop_at": "word"}, "stop_at must be one of line, expression, block or"),
        ("a", {"stop_strings": [5]}, "stop_strings must be a str, got int"),
        ("\ud800", {}, "prompt must be valid Unicode"),
        ([{"content": "a"}], {}, "a conversation must have messages with a role"),
        ([{"role": "user"}], {}, "content of the user's message must be a str, got No"),
    ],
)
def test_bad_arguments_are_refused(gpt2, tokenizer, prompt, options, message):
    with pytest.raises((TypeError, ValueError), match=f"generate: {message}"):
        continued(LanguageModel(gpt2, tokenizer), prompt, **options)


class Favourites:
    """Processors that prefer tokens: the prompts', one of text, and the end."""

    def __init__(self, tokenizer, *prompts):
        self.scores = torch.zeros(320)
        self.scores[tokenizer("".join(prompts))["input_ids"]] = 50
        self.scores[40] = 100
        self.scores[tokenizer.eos_token_id] = 150
        self.text = tokenizer.decode([40])

    def __call__(self, ids, scores):
        return scores + self.scores


@pytest.mark.parametrize("options", [{}, {"token_healing": False}], ids=str)
def test_the_least_number_of_tokens_counts_behind_each_prompt(
    gpt2, tokenizer, make, options
):
    prompts = ["the", "a dog ran", "to the pa", "1234"]
    favourites = Favourites(tokenizer, *prompts)
    options |= {"min_new_tokens": 3, "logits_processor": [favourites]}
    finetuner = make(gpt2, n_select=0)

    assert finetuner.generate(prompts, **OPTIONS | options) == [favourites.text * 3] * 4
    assert finetuner.generate("the c", **OPTIONS | options).endswith(
        favourites.text * 2
    )


def test_a_text_that_has_ended_is_filled_with_no_text(gpt2, tokenizer, make):
    favourites = Favourites(tokenizer, "1234")

    def ends_first(ids, scores):
        return torch.cat([favourites(ids, scores[:1]), scores[1:]])

    options = {"pad_token_id": 41, "logits_processor": [ends_first], **OPTIONS}
    texts = make(gpt2, n_select=0).generate(["1", "234"], **options)

    assert texts[0] == ""
    assert texts[1]


def test_a_configuration_is_heard_as_options_are(gpt2, make):
    finetuner = make(gpt2, n_select=0)
    options = {"do_sample": False, "max_new_tokens": 7, "stop_strings": ["no"]}
    text = finetuner.generate("the", generation_config=GenerationConfig(**options))

    assert text == finetuner.generate("the", **options)
    assert text != finetuner.generate("the", **options | {"max_new_tokens": 6})


@pytest.mark.parametrize("cut", ["x, y", "x, y):\n    retu", "x"])
def test_ngrams_drafts_and_healing_act_before_a_suffix(
    dynamic_llama, tokenizer, copier_of, read_by, cut
):
    code = "def f(x, y):\n    return g(x + y)\n\n\ndef h(x):\n    pass\n"
    tokenizer = deepcopy(tokenizer)
    tokenizer.add_tokens(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
    prompt = code[: code.index(cut) + len(cut)]
    passes = read_by(dynamic_llama)
    with copier_of(code, tokenizer).adapted(
        prompt, suffix="\n\n\n# end\n"
    ) as adaptation:
        passes.clear()
        written = adaptation.generate(max_new_tokens=16, do_sample=False)

    middle = tokenizer.convert_tokens_to_ids("<|fim_middle|>")

    assert code.startswith(prompt + written)
    assert written

    [read] = [tokens for [tokens] in passes if middle in tokens]

    # A draft of what was taken back, and more, stands after the suffix.
    assert read[-1] != middle
    assert len(passes) < 16


def test_a_streamer_takes_one_prompt(gpt2, make):
    with pytest.raises(ValueError, match="streamer must be None for several prompts"):
        make(gpt2, n_select=0).generate(["the", "a"], streamer=object())


def test_a_continuation_begins_with_its_space(gpt2, tokenizers, monkeypatch):
    tokenizer = tokenizers["byte_fallback_bos"]
    new = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(
        gpt2,
        "generate",
        lambda ids, **_: torch.cat([ids, torch.tensor([new])], dim=1),
    )

    language_model = LanguageModel(gpt2, tokenizer)

    text = continued(language_model, "a dog ran,", token_healing=False)

    assert text == " the cat sat"
