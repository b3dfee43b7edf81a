"""GPT-2's activation in one operation, against its formula in float64."""

import math

import pytest
import torch
from transformers.activations import ACT2FN, NewGELUActivation

from hullft_ops.ttft.model import patches as activations
from hullft_ops.ttft.model.patches import fused_activations

SPECIAL = [0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 1e4, -1e4, math.inf, math.nan]
X = torch.cat([torch.linspace(-12, 12, 1001), torch.tensor(SPECIAL)])


def formula(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def results(function, x):
    x = x.detach().requires_grad_()
    y = function(x)
    y.sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_same_function(dtype):
    x = X[X.isfinite()].to(dtype)
    module = ACT2FN["gelu_new"]
    with fused_activations(module):
        found = results(module, x)
    # The derivative has 1 - tanh(...)**2, all rounding for large x, times some x**3.
    for one, wanted, units in zip(
        found, results(formula, x.double()), (4, 32), strict=True
    ):
        assert one.dtype == dtype
        rounding = units * torch.finfo(dtype).eps
        assert torch.allclose(one.double(), wanted, rtol=rounding, atol=rounding)


def test_it_is_one_operation():
    module, x = NewGELUActivation(), torch.randn(5, 8)

    def operations():
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU]
        ) as profile:
            module(x)
        return [event.name for event in profile.events()]

    assert len(operations()) > 5
    with fused_activations(module):
        assert operations() == ["aten::gelu"]
    assert len(operations()) > 5


def test_nan_and_infinity_are_not_hidden():
    module = NewGELUActivation()
    with fused_activations(module):
        y = module(torch.tensor([math.inf, math.nan, 1.0]))
    assert y.isfinite().tolist() == [False, False, True]


@pytest.mark.parametrize("name", ["gelu", "gelu_pytorch_tanh", "silu"])
def test_others_stay_as_they_are(name):
    module = ACT2FN[name]
    with fused_activations(module):
        assert "forward" not in vars(module)


def test_finetuning_uses_it_and_nothing_else(monkeypatch, gpt2, make):
    calls, gelu = [], activations._gelu
    monkeypatch.setattr(
        activations, "_gelu", lambda module, x: calls.append(x.shape) or gelu(module, x)
    )
    finetuner = make(gpt2)
    with finetuner.adapted("the cat sat") as report:
        # Two layers, and as many more where the first text is compared with the model's logits.
        assert len(calls) == 2 * report.forward_backward_passes + 4
        calls.clear()
        gpt2(input_ids=torch.arange(5)[None])
    assert calls == []
