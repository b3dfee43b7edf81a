"""How a support is trained on: orders, schedules, clipping, kinds of parameters and dtypes."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import get_scheduler

import hullft_ops
from hullft_ops.ttft.training import checks
from hullft_ops.ttft.training.steps import ORDERS, SCHEDULES

PROMPT = "the cat sat on the red mat"
LR = 1e-2


def order_of_steps(support, refresh, order):
    """(example, whether its gradient is fresh), step by step."""
    if order == "grouped":
        return [
            (i, done % refresh == 0)
            for i, count in enumerate(support.counts)
            for done in range(count)
        ]
    return [
        (i, done % refresh == 0)
        for done in range(max(support.counts))
        for i, count in enumerate(support.counts)
        if done < count
    ]


def plain_loop(
    model, support, *, refresh, order="grouped", schedule="constant", clip=None
):
    """Adam by torch, a step at a time, with a clone of every gradient; the trained parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    base = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.Adam(trained, lr=LR)
    steps = order_of_steps(support, refresh, order)
    scheduler = get_scheduler(schedule, optimizer, 0, len(steps))
    cached = {}
    for example, fresh in steps:
        if fresh:
            optimizer.zero_grad()
            ids = torch.tensor([support.input_ids[example]])
            cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(trained, clip)
            cached[example] = [parameter.grad.clone() for parameter in trained]
        for parameter, gradient in zip(trained, cached[example], strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad()
    found = [parameter.detach().clone() for parameter in trained]
    with torch.no_grad():
        for parameter, value in zip(trained, base, strict=True):
            parameter.copy_(value)
    return found


def assert_equals_plain_loop(model, finetuner, **options):
    support = finetuner.select(PROMPT)
    assert max(support.counts) > 2, "the prompt must be one with repeats"
    wanted = plain_loop(model, support, **options)
    with finetuner.adapted(PROMPT) as report:
        trained = [
            parameter for parameter in model.parameters() if parameter.requires_grad
        ]
        for parameter, value in zip(trained, wanted, strict=True):
            # Relative to a step: a parameter's own size says nothing about it.
            assert (parameter - value).abs().max() <= LR * 1e-8
    refresh = options["refresh"]
    assert report.forward_backward_passes == sum(
        math.ceil(c / refresh) for c in support.counts
    )
    assert report.optimizer_steps == 12


@pytest.mark.parametrize("refresh", [1, 2, 3, 100])
def test_interleaved_equals_a_loop_that_goes_round(gpt2, make, refresh):
    finetuner = make(gpt2.double(), refresh=refresh, order="interleaved")
    assert_equals_plain_loop(gpt2, finetuner, refresh=refresh, order="interleaved")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_step_has_the_rate_of_its_schedule(gpt2, make, order, schedule):
    finetuner = make(gpt2.double(), refresh=2, order=order, schedule=schedule)
    assert_equals_plain_loop(gpt2, finetuner, refresh=2, order=order, schedule=schedule)
    # And again: the last rate of a prompt is not the first of the next.
    assert_equals_plain_loop(gpt2, finetuner, refresh=2, order=order, schedule=schedule)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_are_clipped_before_they_are_used_or_kept(gpt2, make, order):
    options = {"refresh": 2, "order": order}
    # Adam minds no common factor of its gradients: the bound must cut some of them more.
    finetuner = make(gpt2.double(), max_grad_norm=0.5, **options)
    support = finetuner.select(PROMPT)
    clipped = plain_loop(gpt2, support, clip=0.5, **options)
    free = plain_loop(gpt2, support, **options)
    assert any(
        (a - b).abs().max() > LR * 1e-3 for a, b in zip(clipped, free, strict=True)
    )
    assert_equals_plain_loop(gpt2, finetuner, clip=0.5, **options)


def test_refresh_may_depend_on_the_count(gpt2, make):
    with make(gpt2, refresh=lambda count: max(1, count // 2)).adapted(PROMPT) as report:
        pass
    assert report.refresh == [max(1, count // 2) for count in report.counts]
    pairs = zip(report.counts, report.refresh, strict=True)
    assert report.forward_backward_passes == sum(math.ceil(c / r) for c, r in pairs)
    with (
        pytest.raises(
            ValueError, match="TestTimeFinetuner: refresh must be in .*, got 0"
        ),
        make(gpt2, refresh=lambda count: 0).adapted(PROMPT),
    ):
        pytest.fail("the body must not run")


def test_refresh_is_not_asked_for_a_text_without_steps(gpt2, make):
    def first_alone(embeddings, candidates, queries, n_select):
        found = hullft_ops.fw_select_indexed(embeddings, candidates, queries, n_select)
        counts = torch.zeros_like(found.counts)
        counts[:, 0] = n_select
        return found._replace(counts=counts)

    with make(gpt2, method=first_alone, refresh=lambda count: count).adapted(
        PROMPT
    ) as report:
        pass
    assert report.support_size > 1
    assert (report.forward_backward_passes, report.optimizer_steps) == (1, 12)


def lora(model):
    config = LoraConfig(
        target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def last_block_only(model):
    model.requires_grad_(False)
    model.transformer.h[-1].requires_grad_(True)
    return model


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("restrict", [lora, last_block_only])
def test_part_of_a_model_is_trained_as_a_plain_loop_would(
    gpt2, make, bits, restrict, order
):
    model = restrict(gpt2).double()
    trained = {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert 0 < len(trained) < len(list(model.parameters()))
    before = bits(model)
    finetuner = make(model, refresh=2, order=order)
    with finetuner.adapted(PROMPT):
        assert before.changed() == trained
    assert_equals_plain_loop(model, finetuner, refresh=2, order=order)
    assert before.changed() == set()


@pytest.mark.parametrize("order", ORDERS)
def test_a_bfloat16_model_is_trained_and_restored(gpt2, make, bits, order):
    gpt2.bfloat16()
    before = bits(gpt2)
    with make(gpt2, order=order).adapted(PROMPT) as report:
        assert before.changed() == {name for name, _ in gpt2.named_parameters()}
        assert all(parameter.dtype == torch.bfloat16 for parameter in gpt2.parameters())
    assert before.changed() == set()
    with make(gpt2.float(), order=order).adapted(PROMPT) as precise:
        assert report.losses == pytest.approx(precise.losses, rel=0.03)


@pytest.mark.filterwarnings("ignore:.*bfloat16 in software")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_callers_autocast_sees_every_step_and_the_end(kind, order, make, request):
    model, ids = request.getfixturevalue(kind), torch.arange(9)[None]
    with make(model, dtype="bfloat16", order=order).adapted(PROMPT) as alone:
        pass
    with torch.autocast("cpu", torch.bfloat16):
        before = model(ids).logits
        with make(model, order=order).adapted(PROMPT) as report:
            adapted = model(ids).logits
        assert torch.equal(model(ids).logits, before)
    assert report.losses == alone.losses
    assert not torch.equal(adapted, before)


@pytest.mark.filterwarnings("ignore:.*bfloat16 in software")
def test_autocast_multiplies_in_bfloat16_and_keeps_parameters(gpt2, make, bits):
    before, seen = bits(gpt2), []
    gpt2.lm_head.register_forward_hook(
        lambda module, args, output: seen.append(output.dtype)
    )
    with make(gpt2).adapted(PROMPT) as precise:
        assert set(seen) == {torch.float32}
    seen.clear()
    with make(gpt2, dtype="bfloat16").adapted(PROMPT) as report:
        assert set(seen) == {torch.bfloat16}
        assert all(parameter.dtype == torch.float32 for parameter in gpt2.parameters())
        assert not torch.is_autocast_enabled("cpu")
    assert report.losses != precise.losses
    assert report.losses == pytest.approx(precise.losses, rel=0.03)
    assert before.changed() == set()
    assert make(gpt2, dtype=torch.bfloat16).select(PROMPT).counts == report.counts


@pytest.mark.parametrize("supported", [True, False])
def test_a_processor_without_bfloat16_is_warned_of(
    gpt2, make, monkeypatch, recwarn, supported
):
    monkeypatch.setattr(checks, "has_bfloat16", lambda device: supported)
    make(gpt2, dtype="bfloat16")
    assert (
        any("in software" in str(warning.message) for warning in recwarn) != supported
    )


@pytest.mark.parametrize("narrow", [True, False])
def test_parameters_too_narrow_for_adam_are_warned_of(gpt2, make, recwarn, narrow):
    make(gpt2.half() if narrow else gpt2.bfloat16())
    assert (
        any("trained parameters are float16" in str(w.message) for w in recwarn)
        == narrow
    )


def test_frozen_parameters_may_be_narrow(gpt2, make, recwarn):
    gpt2.transformer.half().requires_grad_(False)
    gpt2.lm_head = torch.nn.Linear(16, 300)
    make(gpt2)
    assert not recwarn.list


def test_parameters_without_storage_are_refused(gpt2, make):
    gpt2.transformer.h[1].to("meta")
    with pytest.raises(
        ValueError,
        match=r"got 12 parameters on the meta device, for example transformer\.h\.1\.",
    ):
        make(gpt2)
    gpt2.transformer.h[1].requires_grad_(False)
    make(gpt2)


@pytest.mark.parametrize("order", ORDERS)
def test_out_of_memory_restores_and_says_what_to_lower(gpt2, make, bits, order):
    finetuner, before, calls = make(gpt2, order=order), bits(gpt2), []

    def allocate(*args):
        calls.append(args)
        if len(calls) == 3:
            torch.empty(2**60, dtype=torch.uint8)

    handle = gpt2.transformer.register_forward_hook(allocate)
    message = r"of up to \d+ tokens; the model has been restored. Lower max_length \(it is 32\)"
    with (
        pytest.raises(torch.OutOfMemoryError, match=message) as raised,
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("the body must not run")
    assert ('order "grouped"' in str(raised.value)) == (order == "interleaved")
    assert before.changed() == set()
    assert all(parameter.grad is None for parameter in gpt2.parameters())
    handle.remove()
    with finetuner.adapted(PROMPT) as report:
        assert report.optimizer_steps == 12


def test_another_error_is_left_as_it_is(gpt2, make):
    def fail(*args):
        raise RuntimeError("of the model's own")

    gpt2.register_forward_hook(fail)
    with (
        pytest.raises(RuntimeError, match="^of the model's own$"),
        make(gpt2).adapted(PROMPT),
    ):
        pytest.fail("the body must not run")
