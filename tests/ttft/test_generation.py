"""Continuing a prompt with the adapted model, behind retrieved passages."""

import pytest
import torch

from hullft_ops.ttft import TestTimeFinetuner, load_model
from hullft_ops.ttft import finetuner as finetuner_module
from hullft_ops.ttft.generation import chat_prompt, continue_prompt
from hullft_ops.ttft.reader import Reader

CONTEXT = 32
PROMPT = "the cat sat on the red mat"
OPTIONS = {"max_new_tokens": 8, "do_sample": False}


def test_the_adapted_model_continues_and_is_restored(model, tokenizer, make):
    finetuner = make(model, n_select=20)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with finetuner.adapted(PROMPT) as adaptation:
        inside = adaptation.generate(PROMPT, **OPTIONS)
        output = model.generate(input_ids=ids, pad_token_id=2, **OPTIONS)

    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)

    assert inside == expected

    model.train()

    assert finetuner.generate(PROMPT, **OPTIONS) == inside
    assert all(module.training for module in model.modules())
    assert continue_prompt(finetuner.reader, PROMPT, **OPTIONS) != inside


TEMPLATE = "{{ bos_token }}user: {{ messages[0].content }} assistant:"


def test_a_message_stands_in_the_chat_template(tokenizers, monkeypatch):
    written = "user: the cat sat assistant:"
    for kind, message in (
        ("byte_level", f"<s>{written}"),
        # This tokenizer writes the token itself.
        ("byte_level_bos_eos", written),
    ):
        monkeypatch.setattr(tokenizers[kind], "chat_template", TEMPLATE)
        assert chat_prompt(tokenizers[kind], "the cat sat") == message


def read_rows(reader, rows, context, **options):
    """In place of what a model writes, what it reads."""
    return [reader.tokenizer.decode(row) for row in rows]


def test_the_nearest_passages_that_fit_stand_before_the_message(
    gpt2, tokenizer, make, store_of, monkeypatch
):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    monkeypatch.setattr(Reader, "generate", read_rows)
    finetuner = make(gpt2, store=store_of(["ran", "the cat"]), n_select=0, context=2)
    with finetuner.adapted("the cat") as adaptation:
        passages = adaptation.support.context_texts
        contents = ["".join([*passages[first:], "the cat"]) for first in range(3)]
        chats = [f"<s>user: {content} assistant:" for content in contents]
        lengths = [len(finetuner.reader.tokens(chat).ids) for chat in chats]

        def chat_behind(room):
            new_tokens = CONTEXT - room
            return adaptation.generate("the cat", chat=True, max_new_tokens=new_tokens)

        assert [chat_behind(length) for length in lengths] == chats
        assert [chat_behind(length - 1) for length in lengths[:2]] == chats[1:]


CONVERSATION = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "a red tree"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "a"},
]
WHOLE_TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"


def test_passages_stand_before_the_last_message_of_the_user(
    llama, tokenizer, store_of, embedder, monkeypatch
):
    monkeypatch.setattr(tokenizer, "chat_template", WHOLE_TEMPLATE)
    monkeypatch.setattr(Reader, "generate", read_rows)
    llama.config.max_position_embeddings = 256
    store = store_of(["a red tree", "the cat"])
    options = {"n_select": 0, "context": 1}
    finetuner = TestTimeFinetuner(llama, tokenizer, store, embedder, **options)
    expected = "s:be short;u:a red tree;a:yes;u:the cat\n\nthe cat;a:a;"

    assert finetuner.generate(CONVERSATION) == expected
    assert finetuner.generate([CONVERSATION, CONVERSATION[:2]]) == [
        expected,
        "s:be short;u:a red tree\n\na red tree;",
    ]
    # A list of texts is no conversation.
    assert finetuner.generate(["the cat"], chat=True) == ["u:the cat\n\nthe cat;"]


@pytest.fixture(scope="module")
def toy():
    return load_model(None)


def test_a_batch_gives_the_texts_of_one_at_a_time(toy, store_of, embedder, monkeypatch):
    """In float32, with a penalty for what was written before, which padding must not change."""
    monkeypatch.setattr(finetuner_module, "GROUP", 8)
    model, tokenizer = toy
    texts = [
        f"def area_{n}(side):\n    return {n} * side\n" * (n % 4) for n in range(14)
    ]
    prompts = [f"{text}def area_{n}" for n, text in enumerate(texts)]
    options = {"max_new_tokens": 8, "do_sample": False, "repetition_penalty": 1.3}
    for context in (0, 2):
        finetuner = TestTimeFinetuner(
            model, tokenizer, store_of(prompts), embedder, n_select=0, context=context
        )
        single = [finetuner.generate(prompt, **options) for prompt in prompts]

        assert finetuner.generate(prompts, batch_size=4, **options) == single
        assert len(set(single)) > 5


def test_prompts_of_like_length_are_continued_together(tokenizer, gpt2, monkeypatch):
    sizes = []

    def listen(module, args, kwargs):
        sizes.append(tuple(kwargs["input_ids"].shape))

    monkeypatch.setattr(finetuner_module, "GROUP", 4)
    finetuner = TestTimeFinetuner(gpt2, tokenizer, n_select=0, context=0)
    lengths = [9, 3, 8, 2, 5]
    prompts = ["1" * length for length in lengths]
    answers = finetuner.generate_each(prompts, batch_size=2, max_new_tokens=1)
    with gpt2.register_forward_pre_hook(listen, with_kwargs=True):
        positions = [position for position, _ in answers]

    assert sizes[-3:] == [(2, 3), (2, 9), (1, 5)]
    assert positions == [3, 1, 2, 0, 4]


def test_each_prompt_is_adapted_to_if_there_are_steps(gpt2, make):
    prompts = ["the cat sat", "a dog ran to the park", "the cat sat"]
    finetuner = make(gpt2)
    single = [finetuner.generate(prompt, **OPTIONS) for prompt in prompts]

    assert finetuner.generate(prompts, **OPTIONS) == single
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
    gpt2, tokenizers, kind, prompt, new_tokens, expected
):
    """The window has 10 tokens. The token that ends a text is not continued."""
    tokenizer = tokenizers[kind]
    passages = [tokenizer.convert_tokens_to_ids(list(text)) for text in ("12", "345")]
    reader = Reader(gpt2, tokenizer, 10)
    context = reader.read(passages)
    calls = []

    def listen(module, args, kwargs):
        calls.append(kwargs["input_ids"][0])

    gpt2.register_forward_pre_hook(listen, with_kwargs=True)
    # Beams take no cache, so the model reads every token again.
    options = {"num_beams": 2, "max_new_tokens": new_tokens}
    continue_prompt(reader, prompt, context=context, **options)

    assert " ".join(tokenizer.convert_ids_to_tokens(calls[0])) == expected


def test_passages_that_were_read_are_not_read_again(model, tokenizer):
    reader = Reader(model.double(), tokenizer)
    context = reader.read([[40, 41, 42], [90, 91]])
    calls = []

    def listen(module, args, kwargs):
        calls.append(kwargs["input_ids"][0].tolist())

    model.register_forward_pre_hook(listen, with_kwargs=True)
    options = {"context": context, **OPTIONS}
    expected = continue_prompt(reader, "the cat", num_beams=1, **options)
    [whole, *_] = calls

    for _ in range(2):
        calls.clear()

        assert continue_prompt(reader, "the cat", **options) == expected
        assert calls[0] == whole[len(context.ids) - 1 :]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (3, {}, "prompt must be a str, got int"),
        ("", {}, "prompt must have a token, got ''"),
        ("a", {"max_new_tokens": 32}, r"max_new_tokens must be in 1\.\.31, got 32"),
        ("a", {"max_new_tokens": "3"}, "max_new_tokens must be an int, got str"),
        ("a", {"max_length": 9}, "max_new_tokens must be passed, not max_length"),
        ("a", {"num_return_sequences": 2}, "num_return_sequences must be 1"),
        ([{"role": "user"}], {}, "a message must have a role and a content, got {'ro"),
        (["a"], {}, "a message must have a role and a content, got 'a'"),
        ([{"role": "user", "content": 3}], {}, "a message's content must be a str"),
        (
            [{"role": "system", "content": "a"}],
            {},
            "a conversation must have a message",
        ),
    ],
)
def test_bad_arguments_are_refused(gpt2, tokenizer, prompt, options, message):
    with pytest.raises((TypeError, ValueError), match=f"generate: {message}"):
        continue_prompt(Reader(gpt2, tokenizer), prompt, **options)


def test_a_continuation_begins_with_its_space(gpt2, tokenizers, monkeypatch):
    tokenizer = tokenizers["byte_fallback_bos"]
    new = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(
        gpt2,
        "generate",
        lambda input_ids, **_: torch.cat([input_ids, torch.tensor([new])], dim=1),
    )

    assert continue_prompt(Reader(gpt2, tokenizer), "a dog ran,") == " the cat sat"
