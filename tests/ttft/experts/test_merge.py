"""Experts merged into the weights before the first step: what is added, and that it goes again."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from threading import Barrier

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import hullft_ops
from hullft_ops.ttft import Datastore, bits_per_byte, score_text
from hullft_ops.ttft.experts.folder import Factors
from hullft_ops.ttft.model.prefix import Prefix
from hullft_ops.ttft.training.trainer import SupportTrainer

LR = 1e-2
PROMPT = "the cat sat on the red mat"
PROMPTS = [PROMPT, "hello world", "a dog ran to the park", "the blue tree"]
RANK, SCALE = 3, 0.5


class Random:
    """Experts with random differences: factors of the matrices, a whole one of a vector."""

    def __init__(self, model: nn.Module, centroids: torch.Tensor) -> None:
        self.centroids = centroids
        self.digest = "random"
        self.checked: list[int] = []
        named = {name: p for name, p in model.named_parameters() if p.dim() <= 2}
        random = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return 0.1 * torch.randn(*shape, generator=random)

        self.updates = [
            {
                name: Factors(draw(p.shape[0], RANK), draw(RANK, p.shape[1]), SCALE)
                if p.dim() == 2
                else draw(*p.shape)
                for name, p in named.items()
            }
            for _ in centroids
        ]

    def update(self, index: int):
        return self.updates[index]

    def seen(self) -> torch.Tensor:
        ones = [one for update in self.updates for one in update.values()]
        both = [
            t for one in ones for t in (one[:2] if isinstance(one, Factors) else [one])
        ]
        return torch.cat([tensor.flatten() for tensor in both])

    def check(self, model: nn.Module, store, n_experts: int) -> None:
        self.checked.append(n_experts)


@pytest.fixture
def centroids(store):
    return torch.stack([part.mean(0) for part in store.embeddings.chunk(6)])


@pytest.fixture
def experts_of(centroids) -> Callable[..., Random]:
    return lambda model: Random(model, centroids)


def copied(model):
    return {
        name: parameter.detach().clone() for name, parameter in model.named_parameters()
    }


def by_hand(before, experts, indices, weights, scale=1.0):
    """The parameters with the experts added one by one, in float64."""
    merged = {name: parameter.double() for name, parameter in before.items()}
    for index, weight in zip(indices, weights, strict=True):
        for name, one in experts.update(index).items():
            whole = one.scale * one.b @ one.a if isinstance(one, Factors) else one
            merged[name] = merged[name] + scale * weight * whole.double()
    return merged


def assert_close(model, wanted, tolerance=1e-6):
    for name, parameter in model.named_parameters():
        assert torch.allclose(
            parameter.double(), wanted[name].double(), atol=tolerance
        ), name


@pytest.mark.parametrize("scale", [1.0, -1.5])
def test_the_weights_get_the_convex_combination_of_the_experts(
    model, make, experts_of, bits, embedder, centroids, scale
):
    experts, before, kept = experts_of(model), copied(model), bits(model)
    finetuner = make(
        model, experts=experts, n_experts=3, n_select=0, expert_scale=scale
    )
    seen = experts.seen()
    query = torch.from_numpy(embedder.encode([PROMPT]))[0]
    chosen = hullft_ops.fw_select(centroids, query, 3, variant="pairwise")
    size = int(chosen.support_size)
    with finetuner.adapted(PROMPT) as report:
        assert report.expert_indices == chosen.indices[:size].tolist()
        assert report.expert_weights == chosen.weights[:size].tolist()
        assert 1 < size <= 3
        assert sum(report.expert_weights) == pytest.approx(1)
        assert_close(
            model,
            by_hand(
                before, experts, report.expert_indices, report.expert_weights, scale
            ),
        )
        assert kept.changed() == {n for n, _ in model.named_parameters()}
        assert report.optimizer_steps == report.forward_backward_passes == 0
        assert report.seconds_merge > 0
        assert report.seconds_save > 0
    assert kept.changed() == set()
    assert torch.equal(experts.seen(), seen), "the experts' own tensors are only read"
    said = json.loads(json.dumps(report.to_dict()))
    assert said["expert_weights"] == report.expert_weights
    assert experts.checked == [3]


def test_files_are_read_at_the_same_time(gpt2, make, experts_of):
    experts, all_are_reading = experts_of(gpt2), Barrier(3)

    def update(index: int):
        all_are_reading.wait(timeout=20)
        return experts.updates[index]

    experts.update = update
    options = {
        "experts": experts,
        "n_experts": 3,
        "expert_temperature": 0.1,
        "n_select": 0,
    }
    with make(gpt2, **options).adapted(PROMPT) as report:
        assert len(report.expert_indices) == 3


def test_without_experts_nothing_is_merged(gpt2, make, experts_of, bits):
    experts, kept = experts_of(gpt2), bits(gpt2)
    for options in ({}, {"experts": experts, "n_experts": 0}):
        with make(gpt2, n_select=0, **options).adapted(PROMPT) as report:
            assert kept.changed() == set()
            assert (report.expert_indices, report.expert_weights) == ([], [])
            assert report.seconds_merge == report.seconds_save == 0
    assert experts.checked == []


def test_steps_go_on_from_the_merged_weights(model, make, experts_of, bits):
    """As from a model whose weights are the merged ones."""
    experts, kept = experts_of(model), bits(model)
    with make(model, experts=experts, n_experts=2).adapted(PROMPT) as report:
        found = copied(model)
    assert kept.changed() == set()
    assert report.optimizer_steps == 12
    plain = make(model)
    assert report.indices == plain.select(PROMPT).indices
    merged = by_hand(
        copied(model), experts, report.expert_indices, report.expert_weights
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(merged[name])
    with plain.adapted(PROMPT) as wanted:
        assert report.losses == pytest.approx(wanted.losses, rel=1e-4)
        # Adam steps by the sign of gradients that are only rounding.
        far = [(found[n] - p).abs().max() for n, p in model.named_parameters()]
        assert max(far) < 12 * LR
        assert torch.stack(far).median() < 1e-4


def test_the_softmax_is_over_the_nearest_directions(
    gpt2, make, experts_of, embedder, centroids
):
    options = {"experts": experts_of(gpt2), "n_experts": 4, "expert_temperature": 0.1}
    support = make(gpt2, n_select=0, **options).select(PROMPT)
    query = torch.from_numpy(embedder.encode([PROMPT]))[0]
    cosines = [float(query @ c / c.norm()) for c in centroids]
    order = sorted(range(6), key=cosines.__getitem__, reverse=True)[:4]
    assert support.expert_indices == order
    shares = [math.exp(cosines[i] / 0.1) for i in order]
    assert support.expert_weights == pytest.approx(
        [s / sum(shares) for s in shares], rel=1e-4
    )


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_a_batch_is_embedded_once_and_weighed_as_its_prompts_are(
    gpt2, make, experts_of, embedder, temperature
):
    options = {
        "experts": experts_of(gpt2),
        "n_experts": 3,
        "expert_temperature": temperature,
    }
    finetuner = make(gpt2, **options)
    embedder.batch_sizes.clear()
    supports = finetuner.select_batch(PROMPTS)
    assert embedder.batch_sizes == [4]
    assert supports == [finetuner.select(prompt) for prompt in PROMPTS]
    assert len({tuple(support.expert_weights) for support in supports}) == 4
    with finetuner.adapted(supports[1]) as report:
        assert report.expert_indices == supports[1].expert_indices
    assert embedder.batch_sizes == [4, 1, 1, 1, 1]


@pytest.mark.parametrize("steps", [0, 4])
def test_the_texts_in_the_context_are_read_by_the_merged_model(
    model, tokenizer, make, experts_of, embedder, bits, steps, tmp_path
):
    kept = bits(model)
    texts = ["a dog", "red cat sat", "the cat sat on", "a cat ran"]
    store = Datastore.build(texts, embedder, tmp_path / "texts", progress=False)
    options = {"context": 2, "n_select": steps, "store": store}
    finetuner = make(model, experts=experts_of(model), **options)
    with finetuner.adapted(PROMPT) as report:
        assert len(report.context_indices) == 2
        whole = bits_per_byte(model, tokenizer, PROMPT, prefix_ids=report.prefix_ids)
        assert finetuner.score_text(PROMPT).value == pytest.approx(whole, rel=1e-5)
    with make(model, **options).adapted(PROMPT) as report:
        assert (
            bits_per_byte(model, tokenizer, PROMPT, prefix_ids=report.prefix_ids)
            != whole
        )
    assert kept.changed() == set()


def stop(*arguments, **options):
    raise KeyError


def adapt_until_stopped(finetuner, kept, stage):
    with finetuner.adapted(PROMPT):
        assert stage == "block"
        assert kept.changed()
        stop()


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("stage", ["read", "add", "train", "prefill", "block"])
def test_whatever_stops_it_the_model_is_as_it_was(
    gpt2, tokenizer, make, experts_of, bits, monkeypatch, stage, steps
):
    experts = experts_of(gpt2)
    finetuner = make(gpt2, experts=experts, n_select=steps, context=1)
    kept, before = bits(gpt2), score_text(gpt2, tokenizer, PROMPT)
    gpt2.train()
    modes = [module.training for module in gpt2.modules()]
    half = len(experts.updates[0]) // 2
    with monkeypatch.context() as patched:
        if stage == "read":
            patched.setattr(experts, "update", stop)
        elif stage == "add":
            # The weight in the middle cannot be added to, when half of them have been.
            name = list(experts.updates[0])[half]
            parameter = dict(gpt2.named_parameters())[name]
            for method in ("addmm_", "add_"):
                patched.setattr(parameter, method, stop, raising=False)
        elif stage == "train":
            patched.setattr(SupportTrainer, "train", stop)
        elif stage == "prefill":
            patched.setattr(Prefix, "read", stop)
        with pytest.raises(KeyError):
            adapt_until_stopped(finetuner, kept, stage)
    assert kept.changed() == set()
    assert [module.training for module in gpt2.modules()] == modes
    assert all(parameter.grad is None for parameter in gpt2.parameters())
    assert score_text(gpt2, tokenizer, PROMPT) == before
    with finetuner.adapted(PROMPT) as report:
        assert report.expert_indices
    assert kept.changed() == set()


def test_a_budget_counts_the_merging_and_leaves_it_whole(gpt2, make, experts_of):
    experts, before = experts_of(gpt2), copied(gpt2)
    finetuner = make(gpt2, experts=experts)
    with finetuner.adapted(PROMPT, seconds=1e-6) as report:
        assert report.steps_left_out == 12
        assert_close(
            gpt2, by_hand(before, experts, report.expert_indices, report.expert_weights)
        )


def test_a_callers_autocast_sees_the_merged_weights(gpt2, make, experts_of):
    ids = torch.tensor([[5, 6, 7]])
    experts, base = experts_of(gpt2), copied(gpt2)
    finetuner = make(gpt2, experts=experts, n_select=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = gpt2(ids).logits
        with finetuner.adapted(PROMPT) as report:
            assert not torch.equal(gpt2(ids).logits, before)
            merged = copied(gpt2)
        assert torch.equal(gpt2(ids).logits, before)
    wanted = by_hand(base, experts, report.expert_indices, report.expert_weights)
    assert all(torch.allclose(merged[n].double(), wanted[n], atol=1e-6) for n in merged)


def test_factors_of_another_dtype_and_in_inference_mode(gpt2, make, experts_of, bits):
    gpt2 = gpt2.to(torch.bfloat16)
    experts, before, kept = experts_of(gpt2), copied(gpt2), bits(gpt2)
    finetuner = make(gpt2, experts=experts, n_select=0)
    with torch.inference_mode(), finetuner.adapted(PROMPT) as report:
        wanted = by_hand(before, experts, report.expert_indices, report.expert_weights)
        assert_close(gpt2, wanted, tolerance=2e-2)
        assert kept.changed()
    assert kept.changed() == set()


# What is refused


def refused(finetuner, message, prompt=PROMPT):
    with pytest.raises(ValueError, match=message), finetuner.adapted(prompt):
        pytest.fail("it must be refused")


def test_every_weight_that_changes_must_be_trained(gpt2, make, experts_of, bits):
    experts, kept = experts_of(gpt2), bits(gpt2)
    name = "transformer.h.1.attn.c_attn.weight"
    dict(gpt2.named_parameters())[name].requires_grad_(False)
    finetuner = make(gpt2, experts=experts, n_select=0)
    versions = [parameter._version for parameter in gpt2.parameters()]
    refused(
        finetuner,
        f"may change only parameters with requires_grad of the model, {name} is frozen",
    )
    assert [parameter._version for parameter in gpt2.parameters()] == versions
    assert kept.changed() == set()


def test_what_the_model_lacks_cannot_change(gpt2, make, experts_of):
    experts = experts_of(gpt2)
    finetuner = make(gpt2, experts=experts, n_select=0)
    versions = [parameter._version for parameter in gpt2.parameters()]
    for update in experts.updates:
        update["transformer.wpe.weight"] = torch.zeros(2, 16)
    message = r"the experts' transformer.wpe.weight has shape \[2, 16\], the model's has \[32, 16\]"
    refused(finetuner, message)
    for update in experts.updates:
        update["transformer.wxe.weight"] = update.pop("transformer.wpe.weight")
    refused(finetuner, "transformer.wxe.weight is none of it")
    assert [parameter._version for parameter in gpt2.parameters()] == versions


def test_a_support_with_experts_needs_a_finetuner_with_experts(
    gpt2, make, experts_of, bits
):
    experts, kept = experts_of(gpt2), bits(gpt2)
    support = make(gpt2, experts=experts).select(PROMPT)
    for options in ({}, {"experts": experts, "n_experts": 0}):
        message = "this support has . experts, so it needs a finetuner with experts"
        refused(make(gpt2, **options), message, support)
    assert kept.changed() == set()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_experts": -1}, ValueError, "n_experts must be"),
        ({"n_experts": 1.5}, TypeError, "n_experts must be an int"),
        (
            {"expert_scale": math.nan},
            ValueError,
            "expert_scale must be finite, got nan",
        ),
        (
            {"expert_temperature": 0},
            ValueError,
            "expert_temperature must be finite and > 0, got 0",
        ),
    ],
)
def test_arguments_out_of_range(gpt2, make, experts_of, options, error, message):
    with pytest.raises(error, match=f"TestTimeFinetuner: {message}"):
        make(gpt2, experts=experts_of(gpt2), **options)


def test_finetuners_with_and_without_experts_share_memory(gpt2, make, experts_of, bits):
    kept, first = bits(gpt2), make(gpt2)
    second = make(gpt2, experts=experts_of(gpt2), n_select=0)
    second.share_memory_with(first)
    for finetuner in (second, first, second):
        with finetuner.adapted(PROMPT):
            assert kept.changed()
        assert kept.changed() == set()
    assert second._snapshot is first._snapshot


# Experts from a folder


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("full", [False, True])
def test_one_expert_is_its_adapter_or_its_difference(
    model, make, build, few, bits, full
):
    experts, before, kept = build(model, full=full), copied(model), bits(model)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    finetuner = make(model, store=few, experts=experts, n_experts=1, n_select=0)
    with finetuner.adapted(PROMPT) as report, torch.no_grad():
        assert report.expert_weights == [1.0]
        assert_close(model, by_hand(before, experts, report.expert_indices, [1.0]))
        merged = model(ids).logits
    assert kept.changed() == set()
    with torch.no_grad():
        assert (merged - model(ids).logits).abs().max() > 1e-3
        if not full:
            folder = experts.path / f"{report.expert_indices[0]:04d}"
            adapter = PeftModel.from_pretrained(deepcopy(model), folder).eval()
            torch.testing.assert_close(adapter(ids).logits, merged, atol=1e-5, rtol=0)


def test_experts_of_something_else_are_refused_before_a_weight_is_touched(
    gpt2, llama, make, build, few, store
):
    experts = build(gpt2)
    versions = [
        parameter._version for parameter in (*gpt2.parameters(), *llama.parameters())
    ]
    lora = get_peft_model(deepcopy(gpt2), LoraConfig(r=1, fan_in_fan_out=True))
    for model, given, count, message in (
        (gpt2, few, 4, "n_experts is 4, .* holds 3 experts"),
        (gpt2, store, 2, "store has 60 texts .*, the experts .* 14 texts"),
        (llama, few, 2, "model is LlamaForCausalLM with .*, the experts"),
        (lora, few, 2, "model must be a plain one"),
    ):
        with pytest.raises(ValueError, match=message):
            make(model, store=given, experts=experts, n_experts=count)
    finetuner = make(gpt2, store=few, experts=experts, n_experts=3)
    for file in experts.path.glob("*/adapter_model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    refused(finetuner, r"adapter_model\.safetensors is damaged")
    after = [
        parameter._version for parameter in (*gpt2.parameters(), *llama.parameters())
    ]
    assert after == versions
