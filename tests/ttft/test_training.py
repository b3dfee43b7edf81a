"""Training on a support, against Adam of torch that takes one step at a time."""

import math
from statistics import median
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GptOssConfig, GptOssForCausalLM

from hullft_ops.ttft import training
from hullft_ops.ttft.models import weights
from hullft_ops.ttft.techniques.passage_steps import PassageSteps, schedule
from model_state import differences, state_of, unchanged

PROMPT = "the cat sat on the red mat"
SHARE = 0.5
OUTER = "wte", "wpe", "embed", "lm_head"


def layers_of(model):
    """The matrices between embeddings and head."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and not any(part in name for part in OUTER)
    ]


def trained_parameters(model):
    return [parameter for parameter in layers_of(model) if parameter.requires_grad]


def size_of(parameter):
    return parameter.detach().double().square().mean().sqrt().item()


def rates_of(model):
    """A share of each matrix's root mean square; an adapter's, of the median one of the layers."""
    trained = trained_parameters(model)
    sizes = [size_of(parameter) for parameter in trained]
    frozen = [size_of(p) for p in layers_of(model) if not p.requires_grad]
    if frozen:
        sizes = [median(frozen)] * len(trained)

    return [SHARE * size for size in sizes]


def values_of(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def plain_loop(finetuner, support):
    """The trained parameters after the steps, and the losses; the model stays as it was."""
    model = finetuner.model
    parameters = trained_parameters(model)
    before = values_of(parameters)
    rates = zip(parameters, rates_of(model), strict=True)
    optimizer = torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in rates])
    losses = []

    for one in schedule(support, finetuner.config.refresh, "balanced"):
        tokens = torch.tensor([one.ids])
        optimizer.zero_grad()
        logits = model(input_ids=tokens).logits
        loss = cross_entropy(logits[0, :-1], tokens[0, 1:])
        loss.backward()
        losses.append(loss.item())
        for _ in range(one.repeats):
            optimizer.step()

    optimizer.zero_grad()
    after = values_of(parameters)
    with torch.no_grad():
        torch._foreach_copy_(parameters, before)

    return after, losses


def assert_equals_plain_loop(finetuner):
    support = finetuner.select(PROMPT)

    assert max(support.counts) > 2, "the prompt must be one with repeats"

    expected, losses = plain_loop(finetuner, support)
    with finetuner.adapted(PROMPT) as adaptation:
        actual = values_of(trained_parameters(finetuner.model))

    for value, other in zip(actual, expected, strict=True):
        assert (value - other).abs().max() <= SHARE * 1e-10

    assert adaptation.losses == pytest.approx(losses, rel=1e-9)
    assert adaptation.report(PassageSteps).steps == support.counts

    refresh = finetuner.config.refresh

    assert adaptation.passes == sum(math.ceil(c / refresh) for c in support.counts)


@pytest.mark.parametrize("refresh", [1, 2, 3, 100])
def test_it_is_adam_with_every_gradient_used_again(model, make, refresh):
    finetuner = make(model.double(), refresh=refresh)
    # And again: every prompt begins with a fresh state.
    for _ in range(2):
        assert_equals_plain_loop(finetuner)


def test_only_the_matrices_of_layers_are_trained(model, make):
    before = state_of(model)
    with make(model).adapted(PROMPT):
        changed = differences(before, state_of(model))

    layers = {id(parameter) for parameter in layers_of(model)}
    names = [name for name, p in model.named_parameters() if id(p) in layers]
    values = [change for change in changed if change.endswith(": bytes")]

    assert values == sorted(f"{name}: bytes" for name in names)
    assert state_of(model) == before


def test_a_model_without_free_memory_is_refused_before_it_changes(
    gpt2, make, monkeypatch
):
    finetuner = make(gpt2)
    memory = SimpleNamespace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with (
        unchanged(gpt2),
        pytest.raises(torch.OutOfMemoryError) as error,
        finetuner.adapted(PROMPT),
    ):
        pass

    needed = sum(p.nbytes for p in layers_of(gpt2)) * (3 + 1 / 16)
    assert f"needs {needed / 1e9:.1f} GB beside the model, and 0.0 GB" in str(error)


def test_only_the_adapters_of_a_peft_model_are_trained(llama, make, with_lora):
    model = with_lora(llama)
    finetuner = make(model.double())
    before = state_of(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    with finetuner.adapted(PROMPT):
        changed = differences(before, state_of(model))

    assert changed == sorted(f"{name}: bytes" for name in names)

    assert_equals_plain_loop(finetuner)


def losses_of(finetuner):
    with finetuner.adapted(PROMPT) as adaptation:
        return adaptation.losses


def test_a_bfloat16_model_is_trained_and_restored(gpt2, make):
    with unchanged(gpt2.bfloat16()):
        losses = losses_of(make(gpt2))

    assert losses[-1] < losses[0]

    precise = losses_of(make(gpt2.float()))

    assert losses == pytest.approx(precise, rel=0.03)


def test_small_steps_of_a_bfloat16_model_are_not_lost(gpt2, make):
    changes = []
    for dtype in (torch.float64, torch.bfloat16):
        model = gpt2.to(dtype)
        before = values_of(trained_parameters(model))
        # A hundredth of the last place of most weights.
        with make(model, lr=5e-5).adapted(PROMPT):
            after = values_of(trained_parameters(model))

        pairs = zip(before, after, strict=True)
        changes.append([(b.double() - a.double()).flatten() for a, b in pairs])

    precise, rounded = (torch.cat(change) for change in changes)
    along = rounded @ precise / (precise @ precise)

    assert along.item() == pytest.approx(1, rel=0.1)


def test_autocast_is_a_callers_and_keeps_parameters(model, make):
    tokens = torch.arange(9)[None]
    precise = losses_of(make(model))
    losses = losses_of(make(model, dtype="bfloat16"))

    assert losses != precise
    assert losses == pytest.approx(precise, rel=0.03)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    with torch.autocast("cpu", torch.bfloat16):
        before = model(tokens).logits
        with make(model).adapted(PROMPT) as adaptation:
            adapted = model(tokens).logits

        assert torch.equal(model(tokens).logits, before)

    assert adaptation.losses == losses
    assert not torch.equal(adapted, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_repeats_exactly_with_dropout_and_without_gradients(gpt2, make, mode):
    finetuner = make(gpt2.train())
    losses = losses_of(finetuner)

    with finetuner.adapted("blue house") as adaptation:
        assert adaptation.losses != losses

    with mode():
        assert losses_of(finetuner) == losses


def test_gradients_go_amid_the_backward_pass(gpt2, make, monkeypatch):
    expected = losses_of(make(gpt2))
    counts = []
    step = training.ReplayAdam.step

    def watched(self, *, repeats, grads):
        counts.append(len(grads))
        assert all(
            parameter.grad is None for parameter in self.param_groups[0]["params"]
        )
        step(self, repeats=repeats, grads=grads)

    monkeypatch.setattr(training.ReplayAdam, "step", watched)
    # No more than one gradient is waiting.
    monkeypatch.setattr(training, "_LEAST_BYTES", 0)
    monkeypatch.setattr(training, "_SHARE", 0.0)

    assert losses_of(make(gpt2)) == expected
    assert max(counts) == 1
    assert not any(p._post_accumulate_grad_hooks for p in gpt2.parameters())


def test_a_quantized_model_reads_but_is_not_trained(llama, make):
    llama.is_quantized = True
    with make(llama, n_select=0, context=1).adapted(PROMPT) as adaptation:
        assert adaptation.score(PROMPT, after="").nll > 0

    with (
        pytest.raises(ValueError, match="model must not be quantized to take steps"),
        unchanged(llama),
        make(llama).adapted(PROMPT),
    ):
        pass


def test_biases_of_stacked_experts_are_no_matrices():
    config = GptOssConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1
    )
    trained = weights.trained_parameters(GptOssForCausalLM(config))

    assert [name for name in trained if "experts" in name] == [
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
    ]
