"""Modules that the with block replaces, adds, removes or changes in kind."""

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
        target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM", **options
    )


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def tree(model):
    """With the plain values of modules and configurations, in order."""
    modules = [(name, module, type(module)) for name, module in model.named_modules()]
    names = list(model.state_dict(keep_vars=True).items())
    plain = [
        (name, {k: v for k, v in vars(owner).items() if isinstance(v, bool | int | float | str)})
        for name, module in model.named_modules()
        for owner in (module, getattr(module, "config", module))
    ]
    return modules, [(name, id(tensor)) for name, tensor in names], plain


def check_restored(model, finetuner, change):
    """Twice: a restored model is one that the finetuner still takes."""
    before, found, kept = logits(model), state_of(model), tree(model)
    for _ in range(2):
        with finetuner.adapted(PROMPT):
            with torch.random.fork_rng():
                change(model)
            assert tree(model) != kept
        assert differences(found, state_of(model)) == []
        assert tree(model) == kept
        assert torch.equal(logits(model), before)


def resize(model):
    model.resize_token_embeddings(328, mean_resizing=False)
    assert logits(model).shape[-1] == model.config.vocab_size == 328


def test_embeddings_that_were_resized(model, make):
    check_restored(model, make(model), resize)


def replace_head(model):
    model.lm_head = nn.Linear(16, 320, bias=False)


def remove_head(model):
    del model.lm_head


def function_for_head(model):
    del model.lm_head
    model.lm_head = torch.sin


def parameter_for_head(model):
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


def remove_parameter(model):
    del model.model.norm.weight


def module_for_parameter(model):
    del model.model.norm.weight
    model.model.norm.weight = nn.Linear(2, 2)


@pytest.mark.parametrize(
    "change",
    [
        replace_head, remove_head, function_for_head, parameter_for_head, no_head, other_order,
        add_layer, swap_layers, nested, remove_parameter, module_for_parameter,
    ],
)  # fmt: skip
def test_what_was_replaced_added_or_removed(llama, make, change):
    check_restored(llama, make(llama), change)


def test_a_module_replaced_before_an_error(llama, make):
    before, head = logits(llama), llama.lm_head

    def fail():
        with make(llama).adapted(PROMPT):
            replace_head(llama)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert llama.lm_head is head
    assert torch.equal(logits(llama), before)


@pytest.mark.parametrize("registered", [False, True])
def test_a_module_that_a_forward_makes_is_made_again(gpt2, make, registered):
    if registered:
        gpt2.register_module("extra", None)
    else:
        gpt2.extra = None

    def add(module, args, output):
        if module.extra is None:
            module.extra = nn.Linear(2, 2)

    gpt2.register_forward_hook(add)
    finetuner = make(gpt2)
    for _ in range(2):
        with finetuner.adapted(PROMPT):
            assert gpt2.extra is not None
        assert gpt2.extra is None


def test_a_module_that_a_forward_makes_with_a_value_that_says_so(gpt2, make):
    def add(module, args, output):
        if not hasattr(module, "made"):
            module.made, module.extra = True, nn.Linear(2, 2)
        module.extra(torch.ones(2))

    gpt2.register_forward_hook(add)
    with make(gpt2).adapted(PROMPT):
        assert gpt2.made
    assert not hasattr(gpt2, "made")
    assert not hasattr(gpt2, "extra")
    logits(gpt2)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.unload(),
        lambda model: model.delete_adapter("default"),
        lambda model: model.add_adapter("new", lora(init_lora_weights=False)),
    ],
    ids=["unload", "delete", "add"],
)
def test_adapters_that_were_unloaded_deleted_or_added(gpt2, make, change):
    model = get_peft_model(gpt2, lora(init_lora_weights=False)).eval()
    model.add_adapter("other", lora())
    check_restored(model, make(model), change)


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


def register_again(model):
    parametrize.register_parametrization(model.lm_head, "weight", Doubled())
    norm = model.model.norm
    parametrize.register_parametrization(norm, "weight", Doubled())


def register_another(model):
    parametrize.register_parametrization(model.lm_head, "bias", Doubled())


def remove(model):
    parametrize.remove_parametrizations(model.lm_head, "weight")


@pytest.mark.parametrize("change", [register_again, register_another, remove])
def test_a_parametrized_module(llama, make, change):
    llama.lm_head.bias = nn.Parameter(torch.ones(320))
    register(llama)
    check_restored(llama, make(llama), change)


def test_a_module_that_was_parametrized(llama, make):
    check_restored(llama, make(llama), register)


def test_a_weight_that_a_hook_computes_by_now_stays_off(llama, make):
    with make(llama).adapted(PROMPT), pytest.warns(FutureWarning):
        nn.utils.weight_norm(llama.lm_head)
    assert "weight" not in llama.lm_head._parameters
    assert logits(llama).isfinite().all()


def test_a_compiled_model(llama, make):
    compiled = torch.compile(llama, backend="eager")
    before = logits(compiled)
    with make(llama).adapted(PROMPT):
        replace_head(llama)
        assert not torch.equal(logits(compiled), before)
    torch.compiler.reset()
    assert torch.equal(logits(compiled), before)


def test_a_traced_module(gpt2, make):
    gpt2.transformer.ln_f = torch.jit.trace(gpt2.transformer.ln_f, torch.randn(1, 3, 16))
    finetuner, before = make(gpt2), logits(gpt2)
    for _ in range(2):
        with finetuner.adapted(PROMPT):
            pass
        assert torch.equal(logits(gpt2), before)
