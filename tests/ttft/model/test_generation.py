"""Continuing a prompt with the adapted model."""

import pytest
import torch
from transformers import GenerationConfig

from hullft_ops.ttft.model.generation import continuation

PROMPT = "the cat sat on the red mat"


def test_generate_continues_with_the_adapted_model_and_restores_it(
    model, tokenizer, make, bits
):
    model.train()
    finetuner, before = make(model, n_select=20), bits(model)
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    length = inputs["input_ids"].shape[1]
    with finetuner.adapted(PROMPT):
        model.eval()
        output = model.generate(
            **inputs, max_new_tokens=8, do_sample=False, pad_token_id=2
        )
    wanted = tokenizer.decode(output[0, length:], skip_special_tokens=True)
    model.train()
    assert finetuner.generate(PROMPT, max_new_tokens=8, do_sample=False) == wanted
    assert all(module.training for module in model.modules())
    assert finetuner.continuation(PROMPT, max_new_tokens=8, do_sample=False) != wanted
    assert before.changed() == set()


def test_of_a_long_prompt_the_end_is_read(gpt2, tokenizer, make):
    finetuner, seen = make(gpt2), []
    gpt2.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    finetuner.continuation("dog " * 50 + PROMPT, max_new_tokens=5, min_new_tokens=5)
    ids = tokenizer("dog " * 50 + PROMPT)["input_ids"]
    assert seen[0].tolist() == [ids[-27:]]
    assert len(seen) == 5
    seen.clear()
    finetuner.continuation(PROMPT)
    assert seen[0].tolist() == [tokenizer(PROMPT)["input_ids"][-12:]]


@pytest.mark.parametrize(
    ("kind", "prompt", "wanted"),
    [
        ("byte_level_bos_eos", "he", ["<s>", "he"]),
        ("byte_level_bos_eos", "he</s>", ["<s>", "he", "</s>"]),
        ("byte_level_bos_eos", "", ["<s>"]),
        ("byte_fallback_bos", "", ["<s>"]),
        ("byte_level", "he", ["he"]),
    ],
)
def test_the_token_that_ends_a_text_is_not_continued(
    gpt2, tokenizers, kind, prompt, wanted
):
    tokenizer, seen = tokenizers[kind], []
    gpt2.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    continuation(gpt2, tokenizer, prompt, 32, max_new_tokens=1)
    assert tokenizer.convert_ids_to_tokens(seen[0][0]) == wanted


def test_a_prompt_without_a_token_is_refused(gpt2, tokenizer):
    with pytest.raises(ValueError, match="prompt must have a token, got ''"):
        continuation(gpt2, tokenizer, "", 32)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (3, TypeError, "must be a str, got int"),
        ("a \udcff", ValueError, "must be valid Unicode"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(gpt2, make, prompt, error, message):
    with pytest.raises(error, match=f"generate: prompt {message}"):
        make(gpt2).continuation(prompt)


def test_how_many_tokens_may_stand_in_a_configuration(gpt2, make):
    finetuner, seen = make(gpt2), []
    generate = gpt2.generate

    def spy(**kwargs):
        output = generate(**kwargs)
        seen.append(output.shape[1] - kwargs["input_ids"].shape[1])
        return output

    gpt2.generate = spy
    gpt2.generation_config.eos_token_id = None
    three = GenerationConfig(max_new_tokens=3, eos_token_id=None)
    finetuner.continuation("the cat", generation_config=three)
    finetuner.continuation("the cat", generation_config=three, max_new_tokens=2)
    finetuner.continuation("the cat", max_new_tokens=None)
    assert seen == [3, 2, 20]
    with pytest.raises(
        ValueError, match="max_new_tokens must be given in place of max_length, .*9"
    ):
        finetuner.continuation("the cat", max_length=9)


def test_a_configuration_that_asks_for_more_than_tokens(gpt2, make):
    finetuner = make(gpt2)
    wanted = finetuner.continuation("the cat", max_new_tokens=3)
    more = GenerationConfig(
        max_new_tokens=3, return_dict_in_generate=True, output_scores=True
    )
    assert finetuner.continuation("the cat", generation_config=more) == wanted


@pytest.mark.parametrize("new", [0, 32])
def test_without_room_for_the_prompt_it_is_refused(gpt2, make, bits, new):
    finetuner, before = make(gpt2), bits(gpt2)
    message = rf"max_new_tokens must be in 1\.\.31 with a context of 32, got {new}"
    with pytest.raises(ValueError, match=message):
        finetuner.generate(PROMPT, max_new_tokens=new)
    assert before.changed() == set()
    assert torch.is_grad_enabled()


def test_a_number_of_new_tokens_must_be_an_int(gpt2, make):
    with pytest.raises(
        TypeError, match="generate: max_new_tokens must be an int, got str"
    ):
        make(gpt2).generate(PROMPT, max_new_tokens="3")


def test_what_cannot_be_met_is_said_before_the_adaptation(gpt2, make, monkeypatch):
    finetuner, adapted = make(gpt2), []
    monkeypatch.setattr(finetuner, "adapted", adapted.append)
    refused = [
        {"max_new_tokens": 32},
        {"max_length": 9},
        {"return_dict_in_generate": True},
    ]
    for options in (*refused, {"num_return_sequences": 2}):
        with pytest.raises(ValueError, match="^generate: "):
            finetuner.generate(PROMPT, **options)
    assert adapted == []


def test_tokens_are_counted_in_integers(gpt2, make):
    with pytest.raises(TypeError, match="max_new_tokens must be an int, got float"):
        make(gpt2).generate(PROMPT, max_new_tokens=4.0)
