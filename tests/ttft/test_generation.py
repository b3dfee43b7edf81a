"""Continuing a prompt with the adapted model, behind retrieved passages."""

import pytest
import torch

from hullft_ops.ttft import adaptation as adaptation_module
from hullft_ops.ttft.generation import chat_prompt, continue_prompt
from hullft_ops.ttft.reading import ReadContext

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
    assert continue_prompt(model, tokenizer, PROMPT, 32, **OPTIONS) != inside


def test_a_message_and_its_passages_stand_in_the_chat_template(
    model, tokenizers, make, monkeypatch
):
    template = "{{ bos_token }}user: {{ messages[0].content }} assistant:"
    written = "user: the cat sat assistant:"
    for kind, message in (
        ("byte_level", f"<s>{written}"),
        # This tokenizer writes the token itself.
        ("byte_level_bos_eos", written),
    ):
        monkeypatch.setattr(tokenizers[kind], "chat_template", template)
        assert chat_prompt(tokenizers[kind], [], "the cat sat", room=0) == message

    # The last passage takes 4 tokens, the first 8, and the rest 19.
    for room, passages in (
        (22, ""),
        (23, "a dog. "),
        (30, "a dog. "),
        (31, "a red mat. a dog. "),
    ):
        text = chat_prompt(
            tokenizers["byte_level"], ["a red mat. ", "a dog. "], "the cat sat", room
        )
        assert text == f"<s>user: {passages}the cat sat assistant:"

    calls = []
    monkeypatch.setattr(
        adaptation_module,
        "continue_prompt",
        lambda *rest, **options: calls.append(rest[2:]),
    )
    finetuner = make(model, n_select=1, context=1)
    with finetuner.adapted("the cat") as adaptation:
        adaptation.generate("the cat", chat=True, max_new_tokens=1)

    [nearest] = adaptation.support.context_indices
    content = f"{finetuner.store.texts[nearest]}\n\nthe cat"

    assert calls == [(f"<s>user: {content} assistant:", finetuner.window, None)]


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
    context = ReadContext(gpt2, tokenizer, passages)
    calls = []

    def listen(module, args, kwargs):
        calls.append(kwargs["input_ids"][0])

    gpt2.register_forward_pre_hook(listen, with_kwargs=True)
    # Beams take no cache, so the model reads every token again.
    options = {"num_beams": 2, "max_new_tokens": new_tokens}
    continue_prompt(gpt2, tokenizer, prompt, 10, context, **options)

    assert " ".join(tokenizer.convert_ids_to_tokens(calls[0])) == expected


def test_passages_that_were_read_are_not_read_again(model, tokenizer):
    context = ReadContext(model.double(), tokenizer, [[40, 41, 42], [90, 91]])
    arguments = model, tokenizer, "the cat", 32, context
    calls = []

    def listen(module, args, kwargs):
        calls.append(kwargs["input_ids"][0].tolist())

    model.register_forward_pre_hook(listen, with_kwargs=True)
    expected = continue_prompt(*arguments, **OPTIONS, num_beams=1)
    [whole, *_] = calls

    for _ in range(2):
        calls.clear()

        assert continue_prompt(*arguments, **OPTIONS) == expected
        assert calls[0] == whole[len(context.tokens) - 1 :]


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
        continue_prompt(gpt2, tokenizer, prompt, 32, **options)


def test_a_continuation_begins_with_its_space(gpt2, tokenizers, monkeypatch):
    tokenizer = tokenizers["byte_fallback_bos"]
    new = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(
        gpt2,
        "generate",
        lambda input_ids, **_: torch.cat([input_ids, torch.tensor([new])], dim=1),
    )

    assert continue_prompt(gpt2, tokenizer, "a dog ran,", 32) == " the cat sat"
