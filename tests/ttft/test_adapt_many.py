"""Adapters of many prompts, trained side by side: each is the one that its prompt gets alone."""

import threading
from contextlib import suppress

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from hullft_ops.ttft import (
    Datastore,
    TestTimeFinetuner,
    TrainedAdapter,
    bits_per_byte,
    support_training,
)
from hullft_ops.ttft.errors import NonFiniteLossError
from hullft_ops.ttft.support_training import LoraSlots

PROMPTS = [
    "the cat sat on the red mat",
    "a dog ran to the park",
    "hello world",
    "blue house tree",
]
LAYERS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}
IDS = torch.tensor([[5, 17, 260, 33, 8, 90, 41, 7]])


def with_lora(model, kind="llama", **options):
    """Its adapter changes the model, as one that was trained before would."""
    options = {"target_modules": LAYERS[kind], "r": 3, "lora_alpha": 5} | options
    torch.manual_seed(1)
    fan_in = {"fan_in_fan_out": kind == "gpt2"}
    found = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fan_in | options))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return found


def unequal_supports(make, model):
    """Of prompts with 3 to 13 steps; the numbers of texts and their lengths differ too."""
    steps = zip(PROMPTS, (13, 3, 8, 5), strict=True)
    return [make(model, n_select=n, pool_size=6).select(prompt) for prompt, n in steps]


def trained(model):
    return [
        parameter.detach().clone()
        for parameter in model.parameters()
        if parameter.requires_grad
    ]


def alone(finetuner, support):
    with finetuner.adapted(support) as report:
        return report, trained(finetuner.model)


def largest_difference(some, others):
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture
def passes(monkeypatch):
    """The lengths of the rows of every pass."""
    found = []
    original = LoraSlots._pass

    def noted(self, rows, clock):
        found.append([len(row.text) for row in rows])
        original(self, rows, clock)

    monkeypatch.setattr(LoraSlots, "_pass", noted)
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_each_adapter_is_the_one_that_its_prompt_gets_alone(
    kind, request, make, passes
):
    model = with_lora(request.getfixturevalue(kind), kind)
    finetuner = make(model, refresh=lambda count: 1 + count % 3, lr=1e-3)
    supports = unequal_supports(make, model)
    found = finetuner.adapt_many(supports)
    assert len({tuple(adapter.report.refresh) for adapter in found}) > 1
    assert len({len(adapter.report.losses) for adapter in found}) > 2
    assert [len(rows) for rows in passes] == sorted(map(len, passes), reverse=True)
    for support, adapter in zip(supports, found, strict=True):
        report, wanted = alone(finetuner, support)
        assert largest_difference(adapter.parameters, wanted) < 1e-5
        assert adapter.report.losses == pytest.approx(report.losses, abs=1e-5)
        same = (
            "indices counts refresh forward_backward_passes optimizer_steps steps_taken"
        )
        same += " steps_left_out full_logits_passes method n_select order residual"
        for name in same.split():
            assert getattr(adapter.report, name) == getattr(report, name), name


@pytest.mark.parametrize(
    "options",
    [
        {"order": "interleaved", "refresh": 3},
        {"schedule": "linear", "max_grad_norm": 0.1},
        {"order": "interleaved", "schedule": "cosine", "max_grad_norm": 0.1},
        {"batch_size": 3},
    ],
    ids=str,
)
def test_steps_are_taken_as_the_finetuner_says(llama, make, passes, options):
    model = with_lora(llama, target_modules=[*LAYERS["llama"], "lm_head"]).double()
    batch_size = {key: options.pop(key) for key in list(options) if key == "batch_size"}
    finetuner = make(model, **options)
    supports = unequal_supports(make, model)
    found = finetuner.adapt_many(supports, **batch_size)
    assert max(map(len, passes)) == batch_size.get("batch_size", 4)
    for support, adapter in zip(supports, found, strict=True):
        report, wanted = alone(finetuner, support)
        assert largest_difference(adapter.parameters, wanted) < 1e-9
        assert adapter.report.full_logits_passes == report.full_logits_passes > 0


class BatchedProducts(TorchDispatchMode):
    """Counts them."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.bmm.default
        return function(*args, **kwargs or {})


def test_a_prompt_that_is_alone_in_its_batch_takes_no_batched_products(llama, make):
    finetuner = make(with_lora(llama), n_select=4)
    supports = finetuner.select_batch(PROMPTS[:2])
    with BatchedProducts() as two:
        finetuner.adapt_many(supports)
    with BatchedProducts() as one:
        [adapter] = finetuner.adapt_many(supports[:1])
    report, wanted = alone(finetuner, supports[0])
    assert largest_difference(adapter.parameters, wanted) < 1e-5
    assert adapter.report.losses == pytest.approx(report.losses, abs=1e-5)
    assert two.count > one.count == 0


def test_an_adapter_scores_continues_and_is_saved(
    llama, tokenizer, make, bits, tmp_path
):
    llama.save_pretrained(tmp_path / "base")
    llama.name_or_path = str(tmp_path / "base")
    model = with_lora(llama)
    before = bits(model)
    finetuner = make(model, n_select=5, context=1)
    found = finetuner.adapt_many(PROMPTS[:2])
    assert before.changed() == set()
    for name, prompt, adapter in zip("ab", PROMPTS, found, strict=False):
        assert isinstance(adapter, TrainedAdapter)
        with finetuner.adapted(prompt) as report:
            wanted = finetuner.score_text(prompt).value
            ids = report.prefix_ids
        with finetuner.adapted(adapter) as report:
            assert finetuner.score_text(prompt).value == pytest.approx(wanted, abs=1e-5)
            assert finetuner.continuation(prompt, max_new_tokens=3)
            report.save_adapter(tmp_path / name)
            adapted = logits(model)
            assert (report.prefix_ids, report.steps_left_out) == (ids, 0)
        assert before.changed() == set()
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        loaded = PeftModel.from_pretrained(base, tmp_path / name)
        torch.testing.assert_close(logits(loaded), adapted, rtol=0, atol=1e-5)
    assert largest_difference(found[0].parameters, found[1].parameters) > 1e-3


def test_the_model_stays_as_it_is_for_other_threads(
    llama, tokenizer, make, monkeypatch, bits
):
    model = with_lora(llama)
    model.train()
    before, attributes = bits(model), [dict(vars(module)) for module in model.modules()]
    score, seen = bits_per_byte(model, tokenizer, PROMPTS[0]), []
    finetuner, other = make(model), make(model)
    wanted = alone(finetuner, finetuner.select(PROMPTS[1]))[1]
    original = LoraSlots._pass

    def interrupted(self, rows, clock):
        original(self, rows, clock)
        if not seen:
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
        if len(seen) > 2:
            raise KeyboardInterrupt

    def use():
        seen.append(bits_per_byte(model, tokenizer, PROMPTS[0]))
        seen.append(alone(other, other.select(PROMPTS[1]))[1])

    monkeypatch.setattr(LoraSlots, "_pass", interrupted)
    found = finetuner.adapt_many(PROMPTS[:2])
    assert seen[0] == score
    assert largest_difference(seen[1], wanted) == 0
    assert largest_difference(found[1].parameters, wanted) < 1e-4
    seen.append(None)
    with suppress(KeyboardInterrupt):
        finetuner.adapt_many(PROMPTS)
        pytest.fail("it was not interrupted")
    assert before.changed() == set()
    assert [dict(vars(module)) for module in model.modules()] == attributes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_adapted_model_is_refused(llama, make):
    finetuner = make(with_lora(llama))
    with (
        finetuner.adapted(PROMPTS[0]),
        pytest.raises(RuntimeError, match="adapted to another prompt already"),
    ):
        finetuner.adapt_many(PROMPTS)


def test_a_prompt_that_fails_is_named(llama, make):
    model = with_lora(llama)
    finetuner = make(model, n_select=6)
    supports = finetuner.select_batch(PROMPTS)
    supports[2].input_ids[1][0] = 319
    with torch.no_grad():
        llama.model.embed_tokens.weight[319] = torch.nan
    index, done = supports[2].indices[1], supports[2].counts[0]
    message = rf"of text {index} of .* is nan at step {done + 1} of 6 for prompts\[2\]"
    with pytest.raises(NonFiniteLossError, match=message):
        finetuner.adapt_many(supports, batch_size=2)
    del supports[2]
    assert len(finetuner.adapt_many(supports)) == 3


def test_a_prompt_without_support_is_named(llama, tokenizer, embedder, tmp_path):
    store = Datastore.build(
        ["a", "the cat sat"], embedder, tmp_path / "store", progress=False
    )
    finetuner = TestTimeFinetuner(
        with_lora(llama), tokenizer, store, embedder, pool_size=1
    )
    with pytest.raises(
        ValueError, match=r"the pool of prompts\[1\] must have a text of 2 tokens"
    ):
        finetuner.adapt_many(["the cat", "a"])
    with pytest.raises(ValueError, match=r"prompts\[1\] must hold text, got ' '"):
        finetuner.adapt_many(["the cat", " "])
    with pytest.raises(
        TypeError, match="prompts must be a sequence of str, got one str"
    ):
        finetuner.adapt_many("the cat")
    with pytest.raises(ValueError, match="batch_size must be in 1.*, got 0"):
        finetuner.adapt_many(["the cat"], batch_size=0)
    assert finetuner.adapt_many([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, r"got \d+ other parameters, for example model.embed_tokens.weight"),
        (
            {"modules_to_save": ["lm_head"]},
            "got 1 other .*lm_head.modules_to_save.default.weight",
        ),
        ({"use_dora": True}, r"got 18 other parameters, .*lora_A.default.weight"),
        (
            {"target_modules": ["embed_tokens"]},
            "got 2 other .*embed_tokens.lora_embedding_A",
        ),
    ],
)
def test_other_parameters_than_plain_loras_are_refused(llama, make, options, message):
    finetuner = make(llama if options is None else with_lora(llama, **options))
    with pytest.raises(ValueError, match=message):
        finetuner.adapt_many(PROMPTS)


class FlatMLP(LlamaMLP):
    """Reads all tokens of a batch as one row, as a mixture of experts does."""

    def forward(self, x):
        return super().forward(x.flatten(0, 1)).view_as(x)


def test_a_layer_that_mixes_rows_is_refused(llama, make):
    llama.model.layers[0].mlp.__class__ = FlatMLP
    finetuner = make(with_lora(llama))
    with pytest.raises(
        RuntimeError, match=r"a row for each of 4 prompts, \[B, T, in\], got \[\d+,"
    ):
        finetuner.adapt_many(PROMPTS)


def test_prompts_may_come_from_an_iterator(llama, make):
    finetuner = make(with_lora(llama), n_select=2)
    adapters = finetuner.adapt_many(prompt for prompt in PROMPTS[:2])
    assert [one.support for one in adapters] == finetuner.select_batch(PROMPTS[:2])
    assert finetuner.adapt_many([]) == []
    for text in ("", PROMPTS[0]):
        with pytest.raises(
            TypeError, match="prompts must be a sequence of str, got one str"
        ):
            finetuner.adapt_many(text)


def test_an_adapter_of_another_model_is_refused(llama, gpt2, make, bits):
    finetuner = make(with_lora(llama), n_select=2)
    [adapter] = finetuner.adapt_many(PROMPTS[:1])
    other = make(with_lora(gpt2, "gpt2"))
    before = bits(other.model)
    with (
        pytest.raises(ValueError, match="one of this finetuner's model"),
        other.adapted(adapter),
    ):
        pytest.fail("it is of another model")
    assert before.changed() == set()


def test_rows_of_similar_length_share_a_pass(llama, make, passes, monkeypatch):
    model = with_lora(llama).double()
    finetuner = make(model)
    supports = unequal_supports(make, model)
    together = finetuner.adapt_many(supports)
    whole = passes.copy()
    passes.clear()
    monkeypatch.setattr(support_training, "_MOST_PADDING", 6)
    apart = finetuner.adapt_many(supports)
    assert all(max(rows) - min(rows) <= 6 for rows in passes)
    assert max(max(rows) - min(rows) for rows in whole) > 6
    assert sum(map(len, passes)) == sum(map(len, whole)) > len(passes) > len(whole)
    for one, other in zip(together, apart, strict=True):
        assert largest_difference(one.parameters, other.parameters) < 1e-9


def test_without_steps_an_adapter_is_the_models_own(llama, make):
    model = with_lora(llama)
    finetuner = make(model, n_select=0)
    [adapter] = finetuner.adapt_many(PROMPTS[:1])
    assert adapter.report.losses == []
    assert largest_difference(adapter.parameters, trained(model)) == 0
    with finetuner.adapted(adapter) as report:
        assert report.optimizer_steps == 0


def test_memory_that_runs_out_says_what_to_lower(llama, make, monkeypatch):
    def fail(self, rows, clock):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(LoraSlots, "_pass", fail)
    with pytest.raises(torch.OutOfMemoryError, match=r"a lower batch_size \(it is 2\)"):
        make(with_lora(llama)).adapt_many(PROMPTS, batch_size=2)
