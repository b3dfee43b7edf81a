"""Forwards replaced for a while."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear
from transformers.pytorch_utils import Conv1D

from hullft_ops.ttft.model.patches import is_replaced_here, replaced_forwards

TOKENS = torch.arange(1, 30)[None]


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def layers():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 6), nn.Sequential(nn.Linear(6, 4), nn.ReLU()), Doubled(4, 3)
    )


def zero(layer, x):
    return torch.zeros(*x.shape[:-1], len(layer.weight))


def test_modules_of_exactly_those_types_run_another():
    model, x = layers(), torch.randn(5, 8)
    with replaced_forwards(model, {nn.Linear: zero}):
        assert torch.equal(model[0](x), torch.zeros(5, 6))
        assert torch.equal(model[1](torch.ones(2, 7, 6)), torch.zeros(2, 7, 4))
        y = torch.randn(5, 4)
        assert torch.equal(model[2](y), 2 * linear(y, model[2].weight, model[2].bias))
        replaced = [
            name for name, module in model.named_modules() if is_replaced_here(module)
        ]
    assert replaced == ["0", "1.0"]
    assert torch.equal(model[0](x), linear(x, model[0].weight, model[0].bias))


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_forward_is_put_back(error):
    model = layers()
    before = [dict(vars(module)) for module in model.modules()]

    def leave():
        with (
            replaced_forwards(model, {nn.Linear: zero}),
            replaced_forwards(model, {nn.Linear: zero, nn.ReLU: zero}),
        ):
            assert [dict(vars(module)) for module in model.modules()] != before
            if error:
                raise error

    if error:
        with pytest.raises(error):
            leave()
    else:
        leave()
    assert [dict(vars(module)) for module in model.modules()] == before


def test_somebody_elses_forward_stays():
    layer, x = nn.Linear(8, 6), torch.randn(5, 8)
    layer.forward = mine = lambda x: x + 1
    with replaced_forwards(layer, {nn.Linear: zero}):
        assert torch.equal(layer(x), x + 1)
        assert not is_replaced_here(layer)
    assert layer.forward is mine


def test_hooks_still_run():
    layer, seen = nn.Linear(8, 6), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with replaced_forwards(layer, {nn.Linear: zero}):
        layer(torch.randn(5, 8))
    assert torch.equal(seen[0], torch.zeros(5, 6))


class Counted:
    """Conv1D's own forward, in an operation that saves other tensors for its backward."""

    def __init__(self):
        self.calls = 0

    def __call__(self, layer, x):
        self.calls += 1
        return torch.einsum("...i,io->...o", x, layer.weight) + layer.bias * 1.0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_run_again_the_same(gpt2, reentrant):
    def gradients():
        cross_entropy(gpt2(input_ids=TOKENS).logits[0, :-1], TOKENS[0, 1:]).backward()
        found = [parameter.grad for parameter in gpt2.parameters()]
        gpt2.zero_grad()
        return found

    wanted, forward = gradients(), Counted()
    gpt2.gradient_checkpointing_enable({"use_reentrant": reentrant})
    # Checkpoints are for training, where GPT-2 has dropout.
    gpt2.train()
    for module in gpt2.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with replaced_forwards(gpt2, {Conv1D: forward}):
        found = gradients()
    assert forward.calls == 2 * sum(
        isinstance(module, Conv1D) for module in gpt2.modules()
    )
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def compiled(model, how):
    if how == "model":
        return torch.compile(model, backend="aot_eager", fullgraph=True)
    if how == "in place":
        model.compile(backend="aot_eager", fullgraph=True)
    else:
        model.forward = torch.compile(
            model.forward, backend="aot_eager", fullgraph=True
        )
    return model


@pytest.mark.parametrize("how", ["model", "in place", "forward"])
def test_a_compiled_model_keeps_its_own(gpt2, how):
    forward = Counted()
    with torch.no_grad():
        wanted = gpt2(input_ids=TOKENS).logits
        model = compiled(gpt2, how)
        for _ in range(2):
            with replaced_forwards(model, {Conv1D: forward}):
                assert torch.allclose(model(input_ids=TOKENS).logits, wanted, atol=1e-6)
            assert torch.allclose(model(input_ids=TOKENS).logits, wanted, atol=1e-6)
    assert forward.calls == 0
