"""Adapters of many prompts, trained side by side: each is the one that its prompt gets alone."""

import pytest
import torch

from hullft_ops.ttft import many
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.many import LoraSlots
from model_state import unchanged

PROMPTS = [
    "the cat sat on the red mat",
    "a dog ran to the park",
    "hello world",
    "blue house tree",
]


@pytest.fixture
def passes(monkeypatch):
    """The lengths of the rows of every pass."""
    lengths = []
    run = LoraSlots._pass

    def record(self, rows, clock):
        lengths.append([len(row.text) for row in rows])
        run(self, rows, clock)

    monkeypatch.setattr(LoraSlots, "_pass", record)
    return lengths


def alone(finetuner, support):
    """The losses, and the trained parameters."""
    with finetuner.adapted(support) as adaptation:
        values = [parameter.detach().clone() for parameter in finetuner._trained]
    return adaptation.losses, values


def unequal_supports(make, model):
    """Of prompts with 3 to 13 steps."""
    supports = []
    for prompt, steps in zip(PROMPTS, (13, 3, 8, 5), strict=True):
        supports.append(make(model, n_select=steps, pool_size=6).select(prompt))
    return supports


@pytest.mark.parametrize(
    "options",
    [
        {"refresh": lambda count: 1 + count % 3},
        {"refresh": 3},
        {"max_grad_norm": 0.1},
    ],
)
def test_each_adapter_is_the_one_that_its_prompt_gets_alone(
    llama, make, with_lora, passes, monkeypatch, options
):
    monkeypatch.setattr(many, "_MOST_PADDING", 12)
    model = with_lora(llama).double()
    finetuner = make(model, **options)
    supports = unequal_supports(make, model)
    adapters = finetuner.adapt_many(supports, batch_size=3)

    assert max(map(len, passes)) > 1
    assert max(max(rows) - min(rows) for rows in passes) <= 12

    for support, adapter in zip(supports, adapters, strict=True):
        losses, expected = alone(finetuner, support)
        assert adapter.losses == pytest.approx(losses, rel=1e-9)

        for value, other in zip(adapter.parameters, expected, strict=True):
            assert (value - other).abs().max() < 1e-8


def test_an_adapter_stands_in_for_its_prompt(llama, make, with_lora, tmp_path):
    model = with_lora(llama)
    finetuner = make(model, n_select=5, context=1)
    with unchanged(model):
        adapters = finetuner.adapt_many(PROMPTS[:2])

    for prompt, adapter in zip(PROMPTS, adapters, strict=False):
        with finetuner.adapted(prompt) as adaptation:
            expected = adaptation.score(prompt)

        with unchanged(model), finetuner.adapted(adapter) as adaptation:
            score = adaptation.score(prompt)
            adaptation.save_adapter(tmp_path / prompt)

        assert score.nll == pytest.approx(expected.nll, rel=1e-5)
        assert adaptation.skipped_steps == 0


def test_an_adapter_without_steps_is_restored_too(llama, make, with_lora):
    finetuner = make(with_lora(llama), n_select=0)
    [adapter] = finetuner.adapt_many(PROMPTS[:1])
    with torch.no_grad():
        finetuner._trained[0].add_(1)

    with unchanged(llama), finetuner.adapted(adapter):
        assert torch.equal(finetuner._trained[0], adapter.parameters[0])


def test_a_prompt_that_fails_is_named(llama, make, with_lora):
    model = with_lora(llama)
    finetuner = make(model, n_select=6, order="grouped")
    supports = finetuner.select_batch(PROMPTS)
    supports[2].input_ids[1][0] = 319
    with torch.no_grad():
        llama.model.embed_tokens.weight[319] = torch.nan

    index, step = supports[2].indices[1], supports[2].counts[0] + 1
    message = rf"passage {index} of .* is nan at step {step} of 6 for prompts\[2\]"
    with pytest.raises(NonFiniteLossError, match=message):
        finetuner.adapt_many(supports, batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "got 1 other parameters, .*lm_head"),
        ({"target_modules": ["embed_tokens"]}, "got 2 other .*lora_embedding_A"),
    ],
)
def test_other_parameters_than_plain_loras_are_refused(
    llama, make, with_lora, options, message
):
    with pytest.raises(ValueError, match=message):
        make(with_lora(llama, **options)).adapt_many(PROMPTS)


def test_what_is_no_list_of_prompts_is_refused(gpt2, llama, make, with_lora):
    finetuner = make(with_lora(llama))

    assert finetuner.adapt_many([]) == []

    with pytest.raises(TypeError, match="must be a sequence of str, got one str"):
        finetuner.adapt_many("the cat")
    with pytest.raises(TypeError, match="prompt must be a str, got Support"):
        finetuner.adapt_many(["the cat", finetuner.select("the cat")])
    with pytest.raises(ValueError, match="batch_size must be .*, got 0"):
        finetuner.adapt_many(PROMPTS, batch_size=0)

    refused = pytest.raises(RuntimeError, match="adapted here already")
    with finetuner.adapted(PROMPTS[0]), refused:
        finetuner.adapt_many(PROMPTS)
