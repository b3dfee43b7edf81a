"""After an adaptation, however it ended, nothing of it remains."""

import copy
import math
import threading
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import hullft_ops
from hullft_ops.ttft import Datastore, TestTimeFinetuner
from hullft_ops.ttft.model.snapshot import ModelSnapshot

PROMPT = "the cat sat on the red mat"


class StopError(Exception):
    """Raised by the tests below."""


@pytest.mark.parametrize(
    "error", [StopError, KeyboardInterrupt, SystemExit, GeneratorExit]
)
def test_an_exception_in_the_body_restores(model, make, error, bits):
    finetuner, before = make(model), bits(model)
    pointers = [tensor.data_ptr() for tensor in model.parameters()]
    changed = None

    def adapt_and_raise():
        nonlocal changed
        with finetuner.adapted(PROMPT):
            changed = before.changed()
            raise error

    with pytest.raises(error):
        adapt_and_raise()
    assert changed == {name for name, _ in model.named_parameters()}
    assert before.changed() == set()
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

    def broken(self, **options):
        step(self, **options)
        stop()

    patch.setattr(hullft_ops.ReplayAdam, "step", broken)


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "breakage",
    [break_embedding, break_selection, break_forward, break_backward, break_step],
)
def test_an_exception_while_adapting_restores(
    gpt2, make, embedder, monkeypatch, breakage, error, bits
):
    finetuner, before = make(gpt2, refresh=1), bits(gpt2)
    with monkeypatch.context() as patch:
        breakage(finetuner, embedder, patch, error)
        with pytest.raises(error), finetuner.adapted(PROMPT):
            pytest.fail("the body must not run")
    assert before.changed() == set()
    assert all(parameter.grad is None for parameter in gpt2.parameters())
    with finetuner.adapted(PROMPT) as report:
        assert report.optimizer_steps == 12
    assert before.changed() == set()


def test_a_loss_that_is_not_finite_names_its_text_and_restores(
    llama, tokenizer, texts, embedder, tmp_path, bits
):
    held = [*texts, PROMPT + " z"]
    store = Datastore.build(held, embedder, tmp_path / "store", progress=False)
    with torch.no_grad():
        llama.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("z")] = math.nan
    before = bits(llama)
    finetuner = TestTimeFinetuner(llama, tokenizer, store, embedder, n_select=12)
    with (
        pytest.raises(
            RuntimeError, match="the loss of text 60 of the datastore is nan"
        ),
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("the body must not run")
    assert before.changed() == set()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_off(gpt2, make, mode, bits):
    finetuner, before = make(gpt2), bits(gpt2)
    with mode():
        with finetuner.adapted(PROMPT):
            adapted = bits(gpt2)
            assert not torch.is_grad_enabled()
        assert before.changed() == set()
    with finetuner.adapted(PROMPT):
        assert adapted.changed() == set()
    assert before.changed() == set()


def test_gradients_flags_and_modes_come_back(gpt2, make, bits):
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
        assert before.changed() == {
            name for name, p in gpt2.named_parameters() if p is not frozen
        }
        gpt2.train()
        gpt2.requires_grad_(False)
    assert before.changed() == set()
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


def test_a_buffer_that_was_empty_or_expanded_comes_back(gpt2, make):
    gpt2.register_buffer("cached", None, persistent=False)
    gpt2.register_buffer("ones", torch.ones(1).expand(4), persistent=False)
    gpt2.register_buffer("last", torch.zeros(1), persistent=False)

    def fill(module, args, output):
        module.cached = torch.ones(3)
        module.last += 1

    gpt2.register_forward_hook(fill)
    with make(gpt2).adapted(PROMPT):
        assert gpt2.cached.tolist() == [1, 1, 1]
        assert gpt2.last > 0
    assert gpt2.cached is None
    assert gpt2.last == 0


def test_values_that_a_forward_keeps_beside_buffers_come_back(gpt2, make):
    """As RWKV does, which scales its weights in its first forward and keeps that it has."""
    gpt2.scaled, gpt2.longest, gpt2.table = False, 3, torch.zeros(3)
    table = gpt2.table

    def change(module, args, output):
        module.scaled, module.longest, module.table = True, 9, torch.ones(9)

    gpt2.register_forward_hook(change)
    with make(gpt2).adapted(PROMPT):
        assert gpt2.scaled
        gpt2.forward_of_somebody = print
    assert (gpt2.scaled, gpt2.longest) == (False, 3)
    assert gpt2.table is table
    assert gpt2.forward_of_somebody is print


@pytest.mark.parametrize("longer_before", [True, False])
def test_dynamic_rope_stays_what_it_was(make, longer_before):
    """Its frequencies are a buffer; for how many positions they are, an attribute."""
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, rope_parameters=rope,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    short, long = torch.arange(1, 20)[None], torch.arange(1, 60)[None]
    with torch.no_grad():
        other = copy.deepcopy(model)
        read = [short, long] if longer_before else [long, short]
        wanted = [other(tokens).logits for tokens in read]
        if longer_before:
            model(long)
        with make(model).adapted(PROMPT):
            if not longer_before:
                model(long)
        found = [model(tokens).logits for tokens in read]
    assert all(map(torch.equal, found, wanted))


def test_tied_weights_stay_tied(gpt2, make):
    with make(gpt2).adapted(PROMPT):
        assert gpt2.lm_head.weight is gpt2.transformer.wte.weight
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight


def test_a_base_model_changed_between_prompts_is_the_one_restored(gpt2, make, bits):
    finetuner = make(gpt2)
    with finetuner.adapted(PROMPT):
        pass
    with torch.no_grad():
        gpt2.lm_head.weight.mul_(2)
    before = bits(gpt2)
    with finetuner.adapted(PROMPT):
        pass
    assert before.changed() == set()


def cast_to_double(model):
    """And give the parameters digits that float32 does not hold."""
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter) * 1e-10)


def test_a_model_may_be_cast_before_its_first_adaptation(gpt2, make, bits):
    finetuner = make(gpt2)
    cast_to_double(gpt2)
    before = bits(gpt2)
    with finetuner.adapted(PROMPT) as report:
        assert report.optimizer_steps == 12
    assert before.changed() == set()


def test_a_model_cast_after_its_first_adaptation_is_refused_and_restored_in_full(
    gpt2, make, bits
):
    finetuner = make(gpt2)
    with finetuner.adapted(PROMPT):
        pass
    cast_to_double(gpt2)
    before = bits(gpt2)
    with (
        pytest.raises(RuntimeError, match=r"from torch\.float32 .* to torch\.float64"),
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("the body must not run")
    assert before.changed() == set()


def test_adapted_within_adapted_is_refused(gpt2, make, bits):
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
        assert adapted.changed() == set()
    assert len(refusals) == 1
    assert before.changed() == set()
    with finetuner.adapted(PROMPT):
        assert adapted.changed() == set()


def test_of_a_peft_model_only_the_adapters_are_trained(gpt2, make, bits):
    lora = LoraConfig(
        target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    model = get_peft_model(gpt2, lora)
    before = bits(model)
    with make(model).adapted(PROMPT) as report:
        assert before.changed() == {
            name for name, _ in model.named_parameters() if "lora_" in name
        }
        assert report.losses[0] != report.losses[-1]
    assert before.changed() == set()


def test_a_model_with_nothing_to_train_is_refused(gpt2, make):
    gpt2.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"requires_grad, got none; .*is_trainable=True"
    ):
        make(gpt2)


class RefusedCopy(TorchDispatchMode):
    """Refuses the copy into a tensor."""

    def __init__(self, refused: torch.Tensor) -> None:
        super().__init__()
        self.refused = refused.data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and args[0].data_ptr() == self.refused:
            raise RuntimeError("refused")
        return func(*args, **kwargs or {})


def spoiled(model):
    """A snapshot of the model, whose parameters have all changed since."""
    snapshot = ModelSnapshot(model, list(model.parameters()))
    snapshot.save()
    with torch.no_grad():
        torch._foreach_add_(list(model.parameters()), 1.0)
    return snapshot


def test_a_parameter_that_refuses_its_copy_keeps_no_other_from_it(gpt2, bits):
    before, snapshot = bits(gpt2), spoiled(gpt2)
    name, parameter = list(gpt2.named_parameters())[3]
    with RefusedCopy(parameter):
        assert snapshot.restore() == [f"{name}: refused"]
    assert before.changed() == {name}
