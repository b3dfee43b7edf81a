"""What the with block may do to a model beside its trained parameters: adapters, frozen weights,
parameters put in the place of others."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

PROMPT = "the cat sat on the red mat"


def lora(**options: object) -> LoraConfig:
    return LoraConfig(
        target_modules=["c_attn"],
        r=2,
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
        **options,
    )


@pytest.fixture
def adapted_model(gpt2):
    model = get_peft_model(gpt2, lora())
    model.add_adapter("other", lora(init_lora_weights=False))
    return model.eval()


def adapters_of(names: set[str]) -> set[str]:
    """Of parameters called layer.lora_A.adapter.weight."""
    return {name.split(".")[-2] for name in names}


@pytest.fixture
def logits(tokenizer):
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])

    @torch.no_grad()
    def logits(model):
        return model(ids).logits

    return logits


@pytest.mark.parametrize("unmerged", [False, True])
def test_adapters_merged_in_the_block_are_an_error(
    adapted_model, make, logits, bits, unmerged
):
    before, computed = bits(adapted_model), logits(adapted_model)

    def merge():
        with make(adapted_model).adapted(PROMPT):
            adapted_model.merge_adapter()
            if unmerged:
                adapted_model.unmerge_adapter()

    with pytest.raises(
        RuntimeError, match=r"c_attn: adapters were merged into its frozen weights"
    ):
        merge()
    assert all(name.endswith("base_layer.weight") for name in before.changed())
    # What is merged stays so: the weights that would be subtracted are gone.
    merged = {
        layer.merged for layer in adapted_model.modules() if hasattr(layer, "merged")
    }
    assert merged == {not unmerged}
    if unmerged:
        torch.testing.assert_close(logits(adapted_model), computed)


def test_a_merged_adapter_is_not_trained_in_silence(adapted_model, make, bits):
    finetuner = make(adapted_model)
    adapted_model.merge_adapter()
    before = bits(adapted_model)
    with (
        pytest.raises(
            RuntimeError, match="loss depends on no parameter that is trained"
        ),
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("there was nothing to adapt")
    assert before.changed() == set()


def test_the_active_adapter_comes_back(adapted_model, make, logits, bits):
    before, computed = bits(adapted_model), logits(adapted_model)
    with make(adapted_model).adapted(PROMPT):
        adapted_model.set_adapter("other")
        assert not torch.equal(logits(adapted_model), computed)
    assert before.changed() == set()
    assert adapted_model.active_adapters == ["default"]
    assert torch.equal(logits(adapted_model), computed)


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_another_active_adapter_wants_another_finetuner(
    adapted_model, make, bits, max_grad_norm
):
    finetuner = make(adapted_model, max_grad_norm=max_grad_norm)
    adapted_model.set_adapter("other")
    with (
        pytest.raises(
            RuntimeError, match="other parameters with requires_grad than when"
        ),
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("the finetuner trains another adapter")
    before = bits(adapted_model)
    with make(adapted_model, max_grad_norm=max_grad_norm).adapted(PROMPT):
        assert adapters_of(before.changed()) == {"other"}


def test_parameters_that_were_frozen_want_another_finetuner(gpt2, make):
    for parameter in list(gpt2.parameters())[1:]:
        parameter.requires_grad_(False)
    finetuner = make(gpt2)
    gpt2.requires_grad_(True)
    with (
        pytest.raises(RuntimeError, match=r"28 now and 1 then: make a new finetuner"),
        finetuner.adapted(PROMPT),
    ):
        pytest.fail("most of the model is not trained")


COUNTED = {
    "in place": lambda frozen: frozen.mul_(2),
    "by an index": lambda frozen: frozen.__setitem__(0, 7.0),
    "a view": lambda frozen: frozen[0].fill_(7.0),
}
# Aliases with a count of their own, which is not the parameter's.
UNCOUNTED = {
    "data": lambda frozen: frozen.data.add_(1),
    "numpy": lambda frozen: frozen.numpy().fill(7.0),
}


def write(gpt2, make, how):
    frozen = gpt2.transformer.wpe.weight
    with make(gpt2).adapted(PROMPT), torch.no_grad():
        how(frozen)


@pytest.mark.parametrize("how", COUNTED.values(), ids=COUNTED)
def test_a_write_to_a_frozen_parameter_that_torch_counts_is_an_error(
    gpt2, make, bits, how
):
    gpt2.transformer.wpe.weight.requires_grad_(False)
    before = bits(gpt2)
    message = r": transformer\.wpe\.weight: it is frozen, and was written to$"
    with pytest.raises(RuntimeError, match=message):
        write(gpt2, make, how)
    assert before.changed() == {"transformer.wpe.weight"}


@pytest.mark.parametrize("how", UNCOUNTED.values(), ids=UNCOUNTED)
def test_a_write_that_torch_does_not_count_stays_as_the_guide_says(
    gpt2, make, bits, how
):
    gpt2.transformer.wpe.weight.requires_grad_(False)
    before = bits(gpt2)
    write(gpt2, make, how)
    assert before.changed() == {"transformer.wpe.weight"}


@pytest.mark.parametrize("frozen", [False, True])
def test_parameters_put_in_the_place_of_others(gpt2, make, bits, frozen):
    gpt2.transformer.wpe.weight.requires_grad_(not frozen)
    before, parameters = bits(gpt2), dict(gpt2.named_parameters())
    other = {
        name: tensor + 1 for name, tensor in copy.deepcopy(gpt2).state_dict().items()
    }
    with make(gpt2).adapted(PROMPT):
        gpt2.load_state_dict(other, assign=True)
    assert before.changed() == set()
    assert all(parameters[name] is now for name, now in gpt2.named_parameters())


def test_a_cast_that_replaces_parameters(gpt2, make, bits):
    before = bits(gpt2)
    kept = torch.__future__.get_overwrite_module_params_on_conversion()
    with make(gpt2).adapted(PROMPT):
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            gpt2.half()
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(kept)
    assert before.changed() == set()
