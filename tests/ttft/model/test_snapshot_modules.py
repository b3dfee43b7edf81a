"""Modules that the with block replaces, adds, removes or changes in kind: named, and not undone."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

from model_state import differences, state_of

PROMPT = "the cat sat on the red mat"
IDS = torch.arange(5, 25)[None]


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def lora(**options):
    return LoraConfig(
        target_modules=["c_attn"],
        r=2,
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
        **options,
    )


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def tensors_of(model):
    return {
        name: (tensor, tensor.detach().clone(), tensor.data_ptr(), tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def check_named(model, finetuner, change, wanted):
    """The error names what changed; tensors that were there have their bits, in their storage."""
    before = tensors_of(model)
    with (
        pytest.raises(RuntimeError, match="load the model again and make") as caught,
        finetuner.adapted(PROMPT),
        torch.random.fork_rng(),
    ):
        change(model)
    assert re.search(f": {wanted}", str(caught.value)), caught.value
    for name, (tensor, bits, place, requires_grad) in before.items():
        assert torch.equal(tensor, bits), name
        assert (tensor.data_ptr(), tensor.requires_grad) == (place, requires_grad), name


def resize(model):
    model.resize_token_embeddings(328, mean_resizing=False)
    assert logits(model).shape[-1] == model.config.vocab_size == 328


def test_a_head_that_was_resized(llama, make):
    check_named(llama, make(llama), resize, "module lm_head was replaced")


def test_tied_embeddings_that_were_resized_in_place(gpt2, make):
    before, computed = state_of(gpt2), logits(gpt2)
    with make(gpt2).adapted(PROMPT), torch.random.fork_rng():
        resize(gpt2)
    assert differences(before, state_of(gpt2)) == []
    assert gpt2.config.vocab_size == 320
    assert torch.equal(logits(gpt2), computed)


def replace_head(model):
    model.lm_head = nn.Linear(16, 320, bias=False)


def remove_head(model):
    del model.lm_head


def function_for_head(model):
    del model.lm_head
    model.lm_head = torch.sin


def parameter_for_head(model):
    del model.lm_head
    model.lm_head = nn.Parameter(torch.ones(3))


def no_head(model):
    model.lm_head = None


def other_order(model):
    model.model = model._modules.pop("model")


def add_layer(model):
    model.model.layers.append(nn.Identity())


def swap_layers(model):
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]


def nested(model):
    model.model.layers[0].mlp = nn.Sequential(model.model.layers[0].mlp)


def other_class(model):
    model.lm_head.__class__ = type("Head", (nn.Linear,), {})


def module_for_parameter(model):
    del model.model.norm.weight
    model.model.norm.weight = nn.Linear(2, 2)


def add_parameter(model):
    model.extra = nn.Parameter(torch.ones(3))


CHANGES = {
    replace_head: "module lm_head was replaced",
    remove_head: "module lm_head was removed",
    function_for_head: "module lm_head was removed",
    parameter_for_head: "module lm_head was removed; parameter lm_head was added",
    no_head: "module lm_head was replaced",
    other_order: "the modules of the model are in another order",
    add_layer: r"module model\.layers\.2 was added",
    swap_layers: r"module model\.layers\.0 was replaced; module model\.layers\.1 was replaced",
    nested: r"module model\.layers\.0\.mlp was replaced",
    other_class: "lm_head is a Head, and was a Linear",
    module_for_parameter: r"module model\.norm\.weight was added",
    add_parameter: "parameter extra was added: a finetuner made after that can train it",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_replaced_added_or_removed(llama, make, change):
    check_named(llama, make(llama), change, CHANGES[change])


def test_a_parameter_that_was_removed_is_back(llama, make):
    before, norm = state_of(llama), llama.model.norm
    with make(llama).adapted(PROMPT):
        del norm.weight
    assert differences(before, state_of(llama)) == []


def test_a_long_list_of_changes_is_cut(gpt2, make):
    def wrap_all(model):
        for block in model.transformer.h:
            for name, child in list(block.named_children()):
                setattr(block, name, nn.Sequential(child))

    check_named(
        gpt2,
        make(gpt2),
        wrap_all,
        r"(module transformer\.h\.0\.\w+ was replaced; ){4}and",
    )


def test_a_module_replaced_before_an_error_does_not_hide_it(llama, make):
    error = KeyError("of the block")

    def fail(model):
        replace_head(model)
        raise error

    with (
        pytest.raises(RuntimeError, match="module lm_head was replaced") as caught,
        make(llama).adapted(PROMPT),
    ):
        fail(llama)
    assert caught.value.__context__ is error


def test_a_module_that_a_forward_makes_is_an_error_until_it_is_there(gpt2, make):
    gpt2.extra = None

    def add(module, args, output):
        if module.extra is None:
            module.extra = nn.Linear(2, 2)

    finetuner = make(gpt2)
    gpt2.register_forward_hook(add)
    with (
        pytest.raises(RuntimeError, match="module extra was added"),
        finetuner.adapted(PROMPT),
    ):
        pass
    before = state_of(gpt2)
    gpt2.extra.requires_grad_(False)
    with make(gpt2).adapted(PROMPT):
        pass
    gpt2.extra.requires_grad_(True)
    assert differences(before, state_of(gpt2)) == []


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda model: model.unload(), r"module \S+c_attn was replaced"),
        (
            lambda model: model.delete_adapter("default"),
            r"module \S+default was removed",
        ),
        (lambda model: model.add_adapter("new", lora()), r"module \S+new was added"),
    ],
    ids=["unload", "delete", "add"],
)
def test_adapters_that_were_unloaded_deleted_or_added(gpt2, make, change, wanted):
    model = get_peft_model(gpt2, lora(init_lora_weights=False)).eval()
    model.add_adapter("other", lora())
    check_named(model, make(model), change, wanted)


def test_how_strong_an_adapter_is(gpt2, make):
    model = get_peft_model(gpt2, lora(init_lora_weights=False)).eval()
    before = logits(model)
    with make(model).adapted(PROMPT):
        for module in model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", 3.0)
    assert torch.equal(logits(model), before)


def register(model):
    parametrize.register_parametrization(model.lm_head, "weight", Doubled())


def register_another(model):
    parametrize.register_parametrization(model.lm_head, "bias", Doubled())


def remove(model):
    parametrize.remove_parametrizations(model.lm_head, "weight")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (register, r"module lm_head\.parametrizations\.weight\.1 was added"),
        (register_another, r"module lm_head\.parametrizations\.bias was added"),
        (remove, "lm_head is a Linear, and was a ParametrizedLinear"),
    ],
)
def test_a_parametrized_module(llama, make, change, wanted):
    llama.lm_head.bias = nn.Parameter(torch.ones(320))
    register(llama)
    check_named(llama, make(llama), change, f"(parameter .* can train it; )?{wanted}")


def test_a_module_that_was_parametrized(llama, make):
    wanted = "lm_head is a ParametrizedLinear, and was a Linear; module lm_head.parametrizations"
    check_named(llama, make(llama), register, wanted)


def test_a_weight_that_a_hook_computes_by_now(llama, make):
    with (
        pytest.raises(RuntimeError, match=r"parameter lm_head\.weight_[gv] was added"),
        make(llama).adapted(PROMPT),
        pytest.warns(FutureWarning),
    ):
        nn.utils.weight_norm(llama.lm_head)
    assert logits(llama).isfinite().all()


def test_a_compiled_model(llama, make):
    compiled = torch.compile(llama, backend="eager")
    before = logits(compiled)
    with make(llama).adapted(PROMPT):
        assert not torch.equal(logits(compiled), before)
    torch.compiler.reset()
    assert torch.equal(logits(compiled), before)


def test_a_traced_module(gpt2, make):
    gpt2.transformer.ln_f = torch.jit.trace(
        gpt2.transformer.ln_f, torch.randn(1, 3, 16)
    )
    finetuner, before = make(gpt2), logits(gpt2)
    for _ in range(2):
        with finetuner.adapted(PROMPT):
            pass
        assert torch.equal(logits(gpt2), before)
