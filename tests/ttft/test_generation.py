"""Continuing a prompt with the adapted model, behind retrieved passages."""

import pytest
import torch

from hullft_ops.ttft import adaptation as adaptation_module
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


def test_the_nearest_passages_that_fit_stand_before_the_message(
    gpt2, tokenizer, make, store_of, monkeypatch
):
    """The window has 32 tokens, the message 21 of them, and the passages 4 and 3."""
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    calls = []
    monkeypatch.setattr(
        adaptation_module,
        "continue_prompt",
        lambda reader, prompt, **options: calls.append(prompt),
    )
    finetuner = make(gpt2, store=store_of(["ran", "the cat"]), n_select=0, context=2)
    with finetuner.adapted("the cat") as adaptation:
        passages = adaptation.support.context_texts
        alone = chat_prompt(tokenizer, "the cat")
        length = len(finetuner.reader.tokens(alone).ids)
        sizes = [len(ids) for ids in adaptation.support.context_ids]
        for room, first in ((sum(sizes), 0), (sum(sizes) - 1, 1), (sizes[1] - 1, 2)):
            adaptation.generate(
                "the cat", chat=True, max_new_tokens=CONTEXT - length - room
            )
            content = "".join([*passages[first:], "the cat"])

            assert calls.pop() == f"<s>user: {content} assistant:"


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
