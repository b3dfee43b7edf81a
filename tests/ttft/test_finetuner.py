"""Adapting a model to a prompt: what it is trained on, and by how much."""

import json
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

import hullft_ops
from hullft_ops.ttft import (
    Datastore,
    TestTimeFinetuner,
    adaptation,
    bits_per_byte,
)
from hullft_ops.ttft import finetuner as finetuner_module
from hullft_ops.ttft.model.loss import MeanLoss
from hullft_ops.ttft.training import steps as steps_module

CONTEXT = 32
LR = 1e-2
PROMPT = "the cat sat on the red mat"
STAGES = [
    "embed",
    "search",
    "select",
    "finetune",
    "tokenize",
    "forward",
    "backward",
    "step",
]
STAGES += ["save", "restore"]


def parameters_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


# What it is trained on


def brute_force_pool(store, embedder, size):
    query = torch.from_numpy(embedder.encode([PROMPT]))[0]
    scores = store.embeddings.double() @ query.double()
    return torch.argsort(scores, descending=True, stable=True)[:size], query


@pytest.mark.parametrize("variant", ["vanilla", "away", "pairwise"])
def test_the_support_is_that_of_the_nearest_texts(gpt2, make, store, embedder, variant):
    pool, query = brute_force_pool(store, embedder, 30)
    wanted = hullft_ops.fw_select(store.embeddings[pool], query, 12, variant=variant)
    size = int(wanted.support_size)
    support = make(gpt2, variant=variant).select(PROMPT)
    assert 1 < size <= 12
    assert support.indices == pool[wanted.indices[:size]].tolist()
    assert support.weights == wanted.weights[:size].tolist()
    assert support.counts == wanted.counts[:size].tolist()
    assert (support.residual, support.gap) == (
        float(wanted.residual),
        float(wanted.gap),
    )


def test_knn_trains_one_step_on_each_of_the_nearest(gpt2, make, store, embedder):
    pool, _ = brute_force_pool(store, embedder, 12)
    with make(gpt2, method="knn").adapted(PROMPT) as report:
        assert report.method == "knn"
        assert report.indices == pool.tolist()
        assert report.counts == [1] * 12
        assert report.forward_backward_passes == report.optimizer_steps == 12


def test_a_store_smaller_than_the_pool_is_all_of_it(
    gpt2, tokenizer, embedder, tmp_path
):
    store = Datastore.build(
        ["the cat", "red mat"], embedder, tmp_path / "two", progress=False
    )
    with TestTimeFinetuner(gpt2, tokenizer, store, embedder).adapted(PROMPT) as report:
        assert sorted(report.indices) == [0, 1]
        assert sum(report.counts) == report.optimizer_steps == 50


@pytest.mark.parametrize("method", ["hullft", "knn"])
def test_texts_without_a_next_token_are_not_chosen(
    gpt2, tokenizer, texts, embedder, tmp_path, method
):
    """They embed like the prompt; without them the selection is that of a store without them."""
    short = ["", "t", "\n"]
    original = embedder.encode

    def encode(batch):
        return original([PROMPT if text in short else text for text in batch])

    embedder.encode = encode
    options = {"method": method, "n_select": 8, "pool_size": 20}
    supports = []
    for name, held in (("with", short + texts), ("without", texts)):
        store = Datastore.build(held, embedder, tmp_path / name, progress=False)
        # The pool that remains must be the same.
        options["pool_size"] = 20 + len(short) * (name == "with")
        finetuner = TestTimeFinetuner(gpt2, tokenizer, store, embedder, **options)
        supports.append(finetuner.select(PROMPT))
    assert [index - len(short) for index in supports[0].indices] == supports[1].indices
    assert supports[0].weights == supports[1].weights
    assert supports[0].counts == supports[1].counts
    assert sum(supports[0].counts) == 8


def test_a_store_without_a_text_to_train_on_is_refused(
    gpt2, tokenizer, embedder, tmp_path
):
    store = Datastore.build(["a", ""], embedder, tmp_path / "short", progress=False)
    finetuner = TestTimeFinetuner(gpt2, tokenizer, store, embedder)
    with (
        pytest.raises(
            ValueError, match="the pool must have a text of 2 tokens or more"
        ),
        finetuner.adapted("a"),
    ):
        pytest.fail("there is nothing to adapt on")


def test_knn_takes_a_step_on_each_text_that_can_be_trained_on(
    gpt2, tokenizer, embedder, tmp_path
):
    store = Datastore.build(
        ["a", "the cat", "a dog"], embedder, tmp_path / "s", progress=False
    )
    finetuner = TestTimeFinetuner(
        gpt2, tokenizer, store, embedder, n_select=3, method="knn"
    )
    message = (
        r"fewer texts to train on than n_select, 2 of 3 .* takes 2 steps, one on each"
    )
    with pytest.warns(UserWarning, match=message):
        support = finetuner.select(PROMPT)
    assert sorted(support.indices) == [1, 2]
    assert support.counts == [1, 1]


@pytest.mark.parametrize("max_length", [None, 20])
def test_texts_are_cut_to_the_context_and_never_padded(
    gpt2, tokenizer, make, store, max_length
):
    seen = []
    finetuner = make(gpt2, refresh=1, max_length=max_length)
    gpt2.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    length = CONTEXT if max_length is None else max_length
    with finetuner.adapted(PROMPT) as report:
        multiset = [
            i
            for i, c in zip(report.indices, report.counts, strict=True)
            for _ in range(c)
        ]
    assert [ids.tolist() for ids in seen] == [
        [tokenizer(store.texts[i])["input_ids"][:length]] for i in multiset
    ]
    assert {ids.shape[1] for ids in seen} > {length}, "some are cut, some are shorter"


# How it is trained


@pytest.mark.parametrize("refresh", [1, 2, 3, 100])
def test_it_equals_adam_with_every_gradient_reused(
    model, make, store, tokenizer, refresh
):
    model.double()
    finetuner = make(model, refresh=refresh)
    support = finetuner.select(PROMPT)
    assert max(support.counts) > 2, "the prompt must be one with repeats"
    base = parameters_of(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    losses = []
    for index, count in zip(support.indices, support.counts, strict=True):
        ids = torch.tensor([tokenizer(store.texts[index])["input_ids"][:CONTEXT]])
        for step in range(count):
            if step % refresh == 0:
                optimizer.zero_grad()
                loss = cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
    wanted = parameters_of(model)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), base, strict=True):
            parameter.copy_(value)

    with finetuner.adapted(PROMPT) as report:
        for parameter, value, start in zip(
            model.parameters(), wanted, base, strict=True
        ):
            # Relative to a step: a parameter's own size says nothing about it.
            torch.testing.assert_close(
                parameter - start, value - start, rtol=0, atol=LR * 1e-9
            )
    assert report.losses == pytest.approx(losses, rel=1e-9)


def test_the_report_adds_up(gpt2, make):
    with make(gpt2, refresh=2).adapted(PROMPT) as report:
        pass
    assert (report.method, report.n_select, report.refresh) == ("hullft", 12, 2)
    assert (
        len(report.indices)
        == len(report.weights)
        == len(report.counts)
        == report.support_size
    )
    assert report.weights == sorted(report.weights, reverse=True)
    assert sum(report.weights) == pytest.approx(1, rel=1e-6)
    assert report.optimizer_steps == sum(report.counts) == 12
    assert (
        report.forward_backward_passes
        == sum(math.ceil(c / 2) for c in report.counts)
        < 12
    )
    assert len(report.losses) == report.forward_backward_passes
    seconds = {stage: getattr(report, f"seconds_{stage}") for stage in STAGES}
    assert min(seconds.values()) > 0
    parts = [seconds[stage] for stage in ("tokenize", "forward", "backward", "step")]
    assert sum(parts) <= seconds["finetune"]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_the_report_says_which_passes_made_full_logits(gpt2, make):
    finetuner = make(gpt2)
    with finetuner.adapted(PROMPT) as report:
        assert report.full_logits_passes == 0
    handle = gpt2.register_forward_hook(lambda *args: None)
    with finetuner.adapted(PROMPT) as report:
        assert report.full_logits_passes == report.forward_backward_passes > 0
    handle.remove()
    with finetuner.adapted(PROMPT) as report:
        assert report.full_logits_passes == 0


def test_numpy_integers_are_integers(gpt2, make):
    of_numpy = {
        "n_select": np.int64(12),
        "refresh": np.int32(2),
        "pool_size": np.int64(30),
    }
    with make(gpt2, **of_numpy, max_length=np.int64(20)).adapted(PROMPT) as report:
        assert (report.n_select, report.refresh) == (12, 2)
        assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    with make(gpt2, refresh=lambda count: np.int64(count)).adapted(PROMPT) as report:
        assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_every_stage_counts_where_it_belongs(gpt2, make, embedder, store, monkeypatch):
    """Time stands still but in one function after the other."""
    finetuner = make(gpt2)
    now = 0.0
    for module in (adaptation, finetuner_module, steps_module):
        monkeypatch.setattr(module, "perf_counter", lambda: now)

    def seconds(owner, name):
        function = getattr(owner, name)

        def takes_a_second(*args, **kwargs):
            nonlocal now
            now += 1
            return function(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, takes_a_second)
            with finetuner.adapted(PROMPT) as report:
                assert report.seconds_restore is None
        times = {stage: getattr(report, f"seconds_{stage}") for stage in STAGES}
        return report, {stage: time for stage, time in times.items() if time}

    assert seconds(embedder, "encode")[1] == {"embed": 1}
    assert seconds(store, "search")[1] == {"search": 1}
    assert seconds(hullft_ops, "fw_select_indexed")[1] == {"select": 1}
    assert seconds(finetuner._snapshot, "save")[1] == {"save": 1}
    assert seconds(finetuner._snapshot, "restore")[1] == {"restore": 1}
    report, found = seconds(MeanLoss, "__call__")
    passes = report.forward_backward_passes
    assert found == {"forward": passes, "finetune": passes}
    assert seconds(torch.autograd, "backward")[1] == {
        "backward": passes,
        "finetune": passes,
    }
    found = seconds(hullft_ops.ReplayAdam, "step")[1]
    assert found == {"step": found["step"], "finetune": found["step"]}
    # Some parameters at a time.
    assert 2 * passes < found["step"] <= 17 * passes


def test_a_text_is_tokenized_once(gpt2, make, monkeypatch):
    finetuner = make(gpt2)
    seen = []
    tokenizer = finetuner.tokenizer

    def slow(text, **kwargs):
        seen.append(text)
        time.sleep(0.02)
        return tokenizer(text, **kwargs)

    monkeypatch.setattr(finetuner._selector, "tokenizer", slow)
    with finetuner.adapted(PROMPT) as report:
        pass
    assert len(seen) == len(set(seen)) == report.support_size
    assert (
        report.seconds_finetune > report.seconds_tokenize >= 0.02 * report.support_size
    )
    first = finetuner.select(PROMPT)
    assert finetuner.select(PROMPT) == first
    first.input_ids[0].clear()
    assert finetuner.select(PROMPT) != first
    assert len(seen) == report.support_size


def test_adapting_lowers_the_loss_on_the_prompt(model, tokenizer, embedder, tmp_path):
    store = Datastore.build(
        [PROMPT + " today"], embedder, tmp_path / "one", progress=False
    )
    finetuner = TestTimeFinetuner(model, tokenizer, store, embedder, n_select=20, lr=LR)
    before = bits_per_byte(model, tokenizer, PROMPT)
    with finetuner.adapted(PROMPT) as report:
        assert bits_per_byte(model, tokenizer, PROMPT) < before / 2
        assert report.losses[-1] < report.losses[0] / 2
    assert bits_per_byte(model, tokenizer, PROMPT) == before


def test_an_adaptation_is_repeatable_though_the_model_has_dropout(gpt2, make):
    gpt2.train()
    finetuner = make(gpt2)
    results = []
    for prompt in (PROMPT, "blue house", PROMPT):
        with finetuner.adapted(prompt) as report:
            results.append((parameters_of(gpt2), report.losses))
    (first, losses), (other, _), (again, losses_again) = results
    assert losses == losses_again
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_a_prompt_longer_than_the_context_adapts(gpt2, tokenizer, make):
    prompt = PROMPT * 20
    assert len(tokenizer(prompt)["input_ids"]) > 4 * CONTEXT
    with make(gpt2).adapted(prompt) as report:
        assert report.optimizer_steps == 12


def test_generate_works_on_the_adapted_model(model, tokenizer, make):
    inputs = tokenizer("the cat", return_tensors="pt", return_token_type_ids=False)

    def generate():
        return model.generate(
            **inputs, max_new_tokens=12, do_sample=False, pad_token_id=0
        )

    before = generate()
    with make(model, n_select=20).adapted(PROMPT):
        adapted = generate()
    assert adapted.shape[1] > inputs["input_ids"].shape[1]
    assert not torch.equal(adapted, before)
    assert torch.equal(generate(), before)


# Bad arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_select": -1}, ValueError, "n_select must be .*, got -1"),
        ({"context": -1}, ValueError, "context must be .*, got -1"),
        ({"context": 1.0}, TypeError, "context must be an int, got float"),
        ({"n_select": 2.0}, TypeError, "n_select must be an int, got float"),
        ({"refresh": 0}, ValueError, "refresh must be .*, got 0"),
        ({"pool_size": 0}, ValueError, "pool_size must be .*, got 0"),
        ({"max_length": 1}, ValueError, "max_length must be .*, got 1"),
        ({"max_length": 33}, ValueError, "max_length is 33, the model's context is 32"),
        (
            {"method": "nearest"},
            ValueError,
            "method must be one of hullft, .*, got 'nearest'",
        ),
        (
            {"method": 7},
            TypeError,
            "method must be a name or a SelectionMethod, got int",
        ),
        (
            {"dtype": "float16"},
            ValueError,
            "dtype must be bfloat16 or None, got float16",
        ),
        (
            {"order": "mixed"},
            ValueError,
            "order must be one of grouped, interleaved, got 'mixed'",
        ),
        (
            {"schedule": "step"},
            ValueError,
            "schedule must be one of constant, .*, got 'step'",
        ),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be above 0, got 0.0"),
        (
            {"max_grad_norm": math.nan},
            ValueError,
            "max_grad_norm must be above 0, got nan",
        ),
        ({"max_grad_norm": "1"}, TypeError, "max_grad_norm must be a number, got str"),
        (
            {"max_grad_norm": True},
            TypeError,
            "max_grad_norm must be a number, got bool",
        ),
        ({"variant": "greedy"}, ValueError, "variant must be one of .*, got 'greedy'"),
        ({"experts": "experts"}, TypeError, "experts must be an Experts, .*, got str"),
        ({"on_step": 3}, TypeError, "on_step must be a function of .*, got int"),
        (
            {"n_select": 100_001},
            ValueError,
            r"n_select must be in 0\.\.100000, got 100001",
        ),
    ],
)
def test_bad_arguments_are_refused(gpt2, make, options, error, message):
    with pytest.raises(error, match=f"TestTimeFinetuner: {message}"):
        make(gpt2, **options)


@pytest.mark.parametrize("name", ["model", "tokenizer", "store", "embedder"])
@pytest.mark.parametrize("wrong", ["gpt2", torch.nn.Linear(1, 1)])
def test_what_is_no_model_tokenizer_store_or_embedder_is_refused(
    gpt2, tokenizer, store, embedder, name, wrong
):
    given = {
        "model": gpt2,
        "tokenizer": tokenizer,
        "store": store,
        "embedder": embedder,
    }
    kind = type(wrong).__name__
    with pytest.raises(
        TypeError, match=f"^TestTimeFinetuner: {name} must be an? .*, got {kind}$"
    ):
        TestTimeFinetuner(**given | {name: wrong})


def made_in_inference_mode(model: PreTrainedModel) -> PreTrainedModel:
    with torch.inference_mode():
        return type(model)(model.config).eval()


def with_lora(model: PreTrainedModel, layer: str) -> PreTrainedModel:
    model.requires_grad_(False)
    return get_peft_model(
        model, LoraConfig(target_modules=[layer], r=2, task_type="CAUSAL_LM")
    )


def test_a_model_made_in_inference_mode_is_refused(llama, make):
    message = (
        r"TestTimeFinetuner: trained parameters must be made outside of inference mode, got 21 "
        r"parameters made in it, for example model.embed_tokens.weight: load the model outside of"
    )
    with pytest.raises(ValueError, match=message):
        make(made_in_inference_mode(llama))


def test_frozen_parameters_made_in_inference_mode_let_no_gradient_through(
    llama, make, bits
):
    model = with_lora(made_in_inference_mode(llama), "q_proj")
    finetuner, before = make(model), bits(model)
    message = (
        r"TestTimeFinetuner: frozen parameters must be made outside of inference mode, "
        r"got 21 made in it, for example .*model.embed_tokens.weight"
    )
    with pytest.raises(RuntimeError, match=message), finetuner.adapted(PROMPT):
        pytest.fail("the body must not run")
    assert before.changed() == set()


def test_frozen_parameters_made_in_inference_mode_may_come_before_all_that_is_trained(
    llama, make, bits
):
    model = with_lora(made_in_inference_mode(llama), "lm_head")
    finetuner, before = make(model), bits(model)
    with finetuner.adapted(PROMPT):
        assert {name.split(".")[-3] for name in before.changed()} == {
            "lora_A",
            "lora_B",
        }
    assert before.changed() == set()


@pytest.mark.parametrize(("name", "dim"), [("other", 24), ("hashing", 25)])
def test_an_embedder_that_is_not_the_datastores_is_refused(
    gpt2, make, other_embedder, name, dim
):
    message = f"embedder is {name} of dim {dim}, the datastore's is hashing of dim 24"
    with pytest.raises(ValueError, match=message):
        make(gpt2, embedder=other_embedder(name, dim))


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("", ValueError, "prompt must hold text, got ''"),
        (" \n", ValueError, r"prompt must hold text, got ' \\n'"),
        (None, TypeError, "prompt must be a str, got NoneType"),
        (
            "a \udcff",
            ValueError,
            "prompt must be valid Unicode: .*surrogates not allowed",
        ),
    ],
)
def test_bad_prompts_are_refused(gpt2, make, prompt, error, message, bits):
    finetuner, before = make(gpt2), bits(gpt2)
    with pytest.raises(error, match=message), finetuner.adapted(prompt):
        pytest.fail("the body must not run")
    with pytest.raises(error, match=message):
        finetuner.select(prompt)
    assert before.changed() == set()


@pytest.mark.filterwarnings("error:The given NumPy array")
def test_vectors_may_be_any_view_of_an_array(gpt2, make, other_embedder):
    class Views(other_embedder):
        def encode(self, texts):
            vectors = super().encode(texts)[::-1].copy()[::-1]
            vectors.setflags(write=False)
            return vectors

    prompts = [PROMPT, "a red house"]
    wanted = make(gpt2).select_batch(prompts)
    assert make(gpt2, embedder=Views()).select_batch(prompts) == wanted


def test_finetuners_that_share_memory_do_what_each_does_alone(
    make: Callable[..., TestTimeFinetuner], gpt2: PreTrainedModel, texts: list[str]
) -> None:
    alone = [make(gpt2, lr=lr) for lr in (1e-2, 1e-3)]
    sharing = [make(gpt2, lr=lr) for lr in (1e-2, 1e-3)]
    sharing[1].share_memory_with(sharing[0])
    for own, shared in zip(alone + alone, sharing + sharing, strict=True):
        with own.adapted(texts[0]) as wanted:
            pass
        with shared.adapted(texts[0]) as found:
            pass
        assert found.losses == wanted.losses
    with (
        sharing[0].adapted(texts[0]),
        pytest.raises(RuntimeError, match="adapted to another"),
    ):
        sharing[1].adapted(texts[1]).__enter__()


def test_finetuners_of_other_parameters_share_no_memory(
    make: Callable[..., TestTimeFinetuner], gpt2: PreTrainedModel
) -> None:
    gpt2.transformer.wte.requires_grad_(False)
    few = make(gpt2)
    gpt2.requires_grad_(True)
    count = len(list(gpt2.parameters()))
    with pytest.raises(
        ValueError, match=f"of the same parameters .*, got {count} and {count - 1}"
    ):
        make(gpt2).share_memory_with(few)


@pytest.mark.parametrize(
    "name", ["model", "store", "n_select", "refresh", "method", "order"]
)
def test_what_it_was_made_with_cannot_be_changed(
    make: Callable[..., TestTimeFinetuner], gpt2: PreTrainedModel, name: str
) -> None:
    finetuner = make(gpt2)
    before = getattr(finetuner, name)
    with pytest.raises(
        AttributeError, match=f"{name} cannot be changed, make a new finetuner"
    ):
        setattr(finetuner, name, None)
    assert getattr(finetuner, name) is before


def test_finetuners_of_two_models_share_no_memory(
    make: Callable[..., TestTimeFinetuner],
    gpt2: PreTrainedModel,
    llama: PreTrainedModel,
) -> None:
    with pytest.raises(
        ValueError, match="only finetuners of one model can share memory"
    ):
        make(gpt2).share_memory_with(make(llama))
