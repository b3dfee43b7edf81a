"""Adapting a model to a prompt: what it is trained on, by how much, and that nothing remains."""

import json
import math
import threading
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import hullft_ops
from hullft_ops.ttft import Datastore, TestTimeFinetuner, bits_per_byte

CONTEXT = 32
PROMPT = "the cat sat on the red mat"
LR = 1e-2


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def make(tokenizer, store, embedder):
    """A finetuner of a model, with 12 steps from a pool of 30."""

    def make(model: nn.Module, **options: object) -> TestTimeFinetuner:
        settings = {"store": store, "embedder": embedder, "n_select": 12, "pool_size": 30}
        return TestTimeFinetuner(model, tokenizer, **(settings | {"lr": LR} | options))

    return make


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer as bytes, so that NaN equals itself."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: tensor.detach().clone().contiguous().view(-1).view(torch.uint8)
        for name, tensor in tensors.items()
    }


def assert_same_bits(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = bits(model)
    assert after.keys() == before.keys()
    assert [name for name in after if not torch.equal(after[name], before[name])] == []


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
    assert (support.residual, support.gap) == (float(wanted.residual), float(wanted.gap))


def test_knn_trains_one_step_on_each_of_the_nearest(gpt2, make, store, embedder):
    pool, _ = brute_force_pool(store, embedder, 12)
    with make(gpt2, method="knn").adapted(PROMPT) as report:
        assert report.method == "knn"
        assert report.indices == pool.tolist()
        assert report.counts == [1] * 12
        assert report.forward_backward_passes == report.optimizer_steps == 12


def test_a_store_smaller_than_the_pool_is_all_of_it(gpt2, tokenizer, embedder, tmp_path):
    store = Datastore.build(["the cat", "red mat"], embedder, tmp_path / "two", progress=False)
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

    def encode(batch, *, progress=False):
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


def test_a_store_without_a_text_to_train_on_is_refused(gpt2, tokenizer, embedder, tmp_path):
    store = Datastore.build(["a", ""], embedder, tmp_path / "short", progress=False)
    finetuner = TestTimeFinetuner(gpt2, tokenizer, store, embedder)
    with (
        pytest.raises(ValueError, match="at least 1 texts of 2 tokens or more, got 0"),
        finetuner.adapted("a"),
    ):
        pytest.fail("there is nothing to adapt on")


@pytest.mark.parametrize("max_length", [None, 10])
def test_texts_are_cut_to_the_context_and_never_padded(
    gpt2, tokenizer, make, store, max_length
):
    seen = []
    gpt2.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    length = CONTEXT if max_length is None else max_length
    with make(gpt2, refresh=1, max_length=max_length).adapted(PROMPT) as report:
        multiset = [i for i, c in zip(report.indices, report.counts, strict=True) for _ in range(c)]
    assert [ids.tolist() for ids in seen] == [
        [tokenizer(store.texts[i])["input_ids"][:length]] for i in multiset
    ]
    assert {ids.shape[1] for ids in seen} > {length}, "some are cut, some are shorter"


# How it is trained


@pytest.mark.parametrize("refresh", [1, 2, 3, 100])
def test_it_equals_adam_with_every_gradient_reused(model, make, store, tokenizer, refresh):
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
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
    wanted = parameters_of(model)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), base, strict=True):
            parameter.copy_(value)

    with finetuner.adapted(PROMPT) as report:
        for parameter, value, start in zip(model.parameters(), wanted, base, strict=True):
            # The loss is float32, whose rounding Adam turns into steps where a gradient is 0.
            torch.testing.assert_close(parameter - start, value - start, rtol=1e-4, atol=1e-6)
    assert report.losses == pytest.approx(losses, rel=1e-5)


def test_the_report_adds_up(gpt2, make):
    with make(gpt2, refresh=2).adapted(PROMPT) as report:
        pass
    assert (report.method, report.n_select, report.refresh) == ("hullft", 12, 2)
    assert len(report.indices) == len(report.weights) == len(report.counts) == report.support_size
    assert report.weights == sorted(report.weights, reverse=True)
    assert sum(report.weights) == pytest.approx(1, rel=1e-6)
    assert report.optimizer_steps == sum(report.counts) == 12
    assert report.forward_backward_passes == sum(math.ceil(c / 2) for c in report.counts) < 12
    assert len(report.losses) == report.forward_backward_passes
    seconds = [getattr(report, f"seconds_{s}") for s in ("embed", "search", "select", "finetune")]
    assert min(seconds) > 0
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_adapting_lowers_the_loss_on_the_prompt(model, tokenizer, embedder, tmp_path):
    store = Datastore.build([PROMPT + " today"], embedder, tmp_path / "one", progress=False)
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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_off(gpt2, make, mode):
    finetuner, before = make(gpt2), bits(gpt2)
    with finetuner.adapted(PROMPT):
        wanted = bits(gpt2)
    with mode():
        with finetuner.adapted(PROMPT):
            assert_same_bits(gpt2, wanted)
            assert not torch.is_grad_enabled()
        assert_same_bits(gpt2, before)
    with finetuner.adapted(PROMPT):
        assert_same_bits(gpt2, wanted)


def test_a_prompt_longer_than_the_context_adapts(gpt2, tokenizer, make):
    prompt = PROMPT * 20
    assert len(tokenizer(prompt)["input_ids"]) > 4 * CONTEXT
    with make(gpt2).adapted(prompt) as report:
        assert report.optimizer_steps == 12


def test_generate_works_on_the_adapted_model(model, tokenizer, make):
    inputs = tokenizer("the cat", return_tensors="pt", return_token_type_ids=False)

    def generate():
        return model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)

    before = generate()
    with make(model, n_select=20).adapted(PROMPT):
        adapted = generate()
    assert adapted.shape[1] > inputs["input_ids"].shape[1]
    assert not torch.equal(adapted, before)
    assert torch.equal(generate(), before)


# That nothing remains


class Stop(Exception):
    """Raised by the tests below."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_in_the_body_restores(model, make, error):
    finetuner, before = make(model), bits(model)
    pointers = [tensor.data_ptr() for tensor in model.parameters()]
    with pytest.raises(error), finetuner.adapted(PROMPT):
        assert not any(torch.equal(b, before[n]) for n, b in bits(model).items() if "norm" in n)
        raise error
    assert_same_bits(model, before)
    assert [tensor.data_ptr() for tensor in model.parameters()] == pointers


def on_third_call(error: type[BaseException]) -> Callable[..., None]:
    calls = 0

    def count(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error

    return count


def break_embedding(finetuner, embedder, patch, error):
    def encode(texts):
        raise error

    patch.setattr(embedder, "encode", encode)


def break_selection(finetuner, embedder, patch, error):
    def select(*args, **kwargs):
        raise error

    patch.setattr(hullft_ops, "fw_select_indexed", select)


def break_forward(finetuner, embedder, patch, error):
    finetuner.model.register_forward_hook(on_third_call(error))


def break_backward(finetuner, embedder, patch, error):
    finetuner.model.lm_head.weight.register_hook(on_third_call(error))


def break_step(finetuner, embedder, patch, error):
    step, stop = hullft_ops.ReplayAdam.step, on_third_call(error)

    def broken(self, closure=None, *, repeats=1):
        step(self, closure, repeats=repeats)
        stop()

    patch.setattr(hullft_ops.ReplayAdam, "step", broken)


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize(
    "breakage", [break_embedding, break_selection, break_forward, break_backward, break_step]
)
def test_an_exception_while_adapting_restores(
    gpt2, make, embedder, monkeypatch, breakage, error
):
    finetuner, before = make(gpt2, refresh=1), bits(gpt2)
    with monkeypatch.context() as patch:
        breakage(finetuner, embedder, patch, error)
        with pytest.raises(error), finetuner.adapted(PROMPT):
            pytest.fail("the body must not run")
    assert_same_bits(gpt2, before)
    assert all(parameter.grad is None for parameter in gpt2.parameters())
    with finetuner.adapted(PROMPT) as report:
        assert report.optimizer_steps == 12
    assert_same_bits(gpt2, before)


def test_a_loss_that_is_not_finite_names_its_text_and_restores(
    llama, tokenizer, texts, embedder, tmp_path
):
    held = [*texts, PROMPT + " z"]
    store = Datastore.build(held, embedder, tmp_path / "store", progress=False)
    with torch.no_grad():
        llama.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("z")] = math.nan
    before = bits(llama)
    finetuner = TestTimeFinetuner(llama, tokenizer, store, embedder, n_select=12)
    with (
        pytest.raises(RuntimeError, match="the loss of text 60 of the datastore is nan"),
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("the body must not run")
    assert_same_bits(llama, before)


def test_gradients_flags_and_modes_come_back(gpt2, make):
    frozen, held, *_ = gpt2.parameters()
    frozen.requires_grad_(False)
    held.grad = torch.ones_like(held)
    gradient, gpt2.training = held.grad, True
    modes = [module.training for module in gpt2.modules()]
    flags = [parameter.requires_grad for parameter in gpt2.parameters()]
    finetuner, before = make(gpt2), bits(gpt2)
    with finetuner.adapted(PROMPT):
        assert [module.training for module in gpt2.modules()] == modes
        assert all(parameter.grad is None for parameter in gpt2.parameters())
        assert torch.equal(bits(gpt2)["transformer.wte.weight"], before["transformer.wte.weight"])
        gpt2.train()
        gpt2.requires_grad_(False)
    assert_same_bits(gpt2, before)
    assert [module.training for module in gpt2.modules()] == modes
    assert [parameter.requires_grad for parameter in gpt2.parameters()] == flags
    assert held.grad is gradient
    assert torch.equal(gradient, torch.ones_like(held))


def test_buffers_come_back_even_when_they_were_replaced(gpt2, make):
    gpt2.register_buffer("mean", torch.tensor([0.5]))
    gpt2.register_buffer("calls", torch.tensor(7), persistent=False)
    mean, calls = gpt2.mean, gpt2.calls

    def update(module, args, output):
        module.mean.mul_(0.9)
        module.calls = module.calls + 1

    gpt2.register_forward_hook(update)
    with make(gpt2, refresh=1).adapted(PROMPT):
        assert gpt2.calls == 7 + 12
        assert mean < 0.2
    assert gpt2.mean is mean
    assert gpt2.calls is calls
    assert mean.tolist() == [0.5]
    assert calls.tolist() == 7
    assert "calls" not in gpt2.state_dict()


def test_tied_weights_stay_tied(gpt2, make):
    with make(gpt2).adapted(PROMPT):
        assert gpt2.lm_head.weight is gpt2.transformer.wte.weight
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight


def test_a_base_model_changed_between_prompts_is_the_one_restored(gpt2, make):
    finetuner = make(gpt2)
    with finetuner.adapted(PROMPT):
        pass
    with torch.no_grad():
        gpt2.lm_head.weight.mul_(2)
    before = bits(gpt2)
    with finetuner.adapted(PROMPT):
        pass
    assert_same_bits(gpt2, before)


def test_a_model_cast_after_its_finetuner_was_made_is_restored_in_full(gpt2, make):
    finetuner = make(gpt2)
    with finetuner.adapted(PROMPT):
        pass
    gpt2.double()
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(torch.rand_like(parameter) * 1e-10)
    before = bits(gpt2)
    with finetuner.adapted(PROMPT) as report:
        assert report.optimizer_steps == 12
    assert_same_bits(gpt2, before)


def test_adapted_within_adapted_is_refused(gpt2, make):
    finetuner, before = make(gpt2), bits(gpt2)
    refusals = []

    def adapt_elsewhere():
        try:
            with finetuner.adapted(PROMPT):
                pass
        except RuntimeError as error:
            refusals.append(str(error))

    with finetuner.adapted(PROMPT):
        adapted = bits(gpt2)
        with pytest.raises(RuntimeError, match="adapted to another prompt already"):
            finetuner.adapted("blue house").__enter__()
        thread = threading.Thread(target=adapt_elsewhere)
        thread.start()
        thread.join()
        assert_same_bits(gpt2, adapted)
    assert len(refusals) == 1
    assert_same_bits(gpt2, before)
    with finetuner.adapted(PROMPT):
        assert_same_bits(gpt2, adapted)


# PEFT


def test_of_a_peft_model_only_the_adapters_are_trained(gpt2, make):
    lora = LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(gpt2, lora)
    before = bits(model)
    with make(model).adapted(PROMPT) as report:
        inside = bits(model)
        changed = {name for name in inside if not torch.equal(inside[name], before[name])}
        assert changed == {name for name in before if "lora_" in name}
        assert report.losses[0] != report.losses[-1]
    assert_same_bits(model, before)


def test_a_model_with_nothing_to_train_is_refused(gpt2, make):
    gpt2.requires_grad_(False)
    with pytest.raises(ValueError, match=r"requires_grad, got none; .*is_trainable=True"):
        make(gpt2)


# Bad arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_select": 0}, ValueError, "n_select must be .*, got 0"),
        ({"n_select": 2.0}, TypeError, "n_select must be an int, got float"),
        ({"refresh": 0}, ValueError, "refresh must be .*, got 0"),
        ({"pool_size": 0}, ValueError, "pool_size must be .*, got 0"),
        ({"max_length": 1}, ValueError, "max_length must be .*, got 1"),
        ({"max_length": 33}, ValueError, "max_length is 33, the model's context is 32"),
        ({"method": "sift"}, ValueError, "method must be one of hullft, knn, got 'sift'"),
        ({"variant": "greedy"}, ValueError, "variant must be one of .*, got 'greedy'"),
        ({"method": "knn", "n_select": 31}, ValueError, "n_select must be .*, got 31 of 30"),
    ],
)
def test_bad_arguments_are_refused(gpt2, make, options, error, message):
    with pytest.raises(error, match=f"TestTimeFinetuner: {message}"):
        make(gpt2, **options)


@pytest.mark.parametrize(("name", "dim"), [("other", 24), ("hashing", 25)])
def test_an_embedder_that_is_not_the_datastores_is_refused(gpt2, make, other_embedder, name, dim):
    message = f"embedder is {name} of dim {dim}, the datastore was built with hashing of dim 24"
    with pytest.raises(ValueError, match=message):
        make(gpt2, embedder=other_embedder(name, dim))


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("", ValueError, "prompt must hold text, got ''"),
        (" \n", ValueError, r"prompt must hold text, got ' \\n'"),
        (None, TypeError, "prompt must be a str, got NoneType"),
    ],
)
def test_bad_prompts_are_refused(gpt2, make, prompt, error, message):
    finetuner, before = make(gpt2), bits(gpt2)
    with pytest.raises(error, match=message), finetuner.adapted(prompt):
        pytest.fail("the body must not run")
    with pytest.raises(error, match=message):
        finetuner.select(prompt)
    assert_same_bits(gpt2, before)
