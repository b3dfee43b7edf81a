"""Linear layers by oneDNN against float64, on any processor that has it."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hullft_ops.ttft.head_loss import linear_mean_loss
from hullft_ops.ttft.models import onednn
from hullft_ops.ttft.models.onednn import wide_products

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="torch was built without oneDNN",
)


@pytest.fixture
def products(monkeypatch):
    """Shapes of the products that oneDNN made."""
    shapes = []
    multiply_by_onednn = onednn._product

    def record(a, b, bias=None):
        shapes.append((*a.shape, b.shape[1]))
        return multiply_by_onednn(a, b, bias)

    monkeypatch.setattr(onednn, "_product", record)
    monkeypatch.setattr(onednn, "_has_wider_products", lambda: True)
    monkeypatch.setattr(onednn, "_LEAST_WORK", 1)
    return shapes


def results(layer, x):
    """The output, and the gradients of input and parameters."""
    x = x.detach().requires_grad_()
    y = layer(x)
    inputs = [x, *layer.parameters()]
    weights = torch.arange(y.numel()).view_as(y) % 7
    gradients = torch.autograd.grad(y, inputs, weights.to(y))
    return [y, *gradients]


def assert_close(values, others):
    """Relative to the largest, as a sum is rounded."""
    for value, other in zip(values, others, strict=True):
        assert value.shape == other.shape
        assert (value - other).abs().max() < 1e-6 * other.abs().max()


@pytest.mark.parametrize("kind", ["Linear", "Linear without bias", "Conv1D"])
@pytest.mark.parametrize("shape", [(7, 8), (2, 3, 11, 8)])
@pytest.mark.parametrize("is_dense", [True, False])
def test_a_layer_gives_output_and_gradients(products, kind, shape, is_dense):
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, bias=kind == "Linear")
    if kind == "Conv1D":
        layer = Conv1D(6, 8)

    x = torch.randn(*shape[:-1], 16)[..., :8]
    if is_dense:
        x = x.contiguous()

    precise = copy.deepcopy(layer).double()
    expected = results(precise, x.double())

    assert products == []

    with wide_products(layer):
        assert_close(results(layer, x), expected)

    rows = x.numel() // 8
    through_weight = (8, rows, 6) if kind == "Conv1D" else (6, rows, 8)

    assert products == [(rows, 8, 6), (rows, 6, 8), through_weight]
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("rows", [3, 9])
def test_a_head_gives_loss_and_gradients(products, rows):
    torch.manual_seed(0)
    inputs = [torch.randn(9, 8), torch.randn(1030, 8), torch.randn(1030)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    precise = [tensor.detach().double().requires_grad_() for tensor in inputs]
    targets = torch.arange(9)

    loss = linear_mean_loss(*inputs, targets, rows)
    gradients = torch.autograd.grad(loss, inputs)

    logits = nn.functional.linear(*precise)
    expected_loss = nn.functional.cross_entropy(logits, targets)
    expected_gradients = torch.autograd.grad(expected_loss, precise)

    assert_close([loss, *gradients], [expected_loss, *expected_gradients])

    # Logits and weights in two tiles, for each chunk.
    assert len(products) == 5 * 9 // rows


def test_everything_else_is_left_to_torch(products, monkeypatch):
    layer = nn.Linear(8, 6)
    x = torch.randn(5, 8)
    with wide_products(layer):
        row = x[0]

        assert torch.equal(layer(row), row @ layer.weight.T + layer.bias)
        assert layer(x[:0]).shape == (0, 6)

        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16

        monkeypatch.setattr(onednn, "_LEAST_WORK", 5 * 8 * 6 + 1)
        layer(x)
        monkeypatch.undo()

        assert layer.double()(x.double()).dtype == torch.float64

    assert products == []
