"""Linear layers by oneDNN against float64, on any processor that has it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hullft_ops import _C
from hullft_ops.ttft import bits_per_byte, load_embedder
from hullft_ops.ttft.model import onednn as products
from hullft_ops.ttft.model.onednn import multiply, multiply_into, wide_products

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="torch was built without oneDNN",
)


@pytest.fixture
def made(monkeypatch):
    """Shapes of the products that oneDNN made."""
    shapes, product = [], products._product

    def recorded(a, b, bias=None):
        shapes.append((*a.shape, b.shape[1]))
        return product(a, b, bias)

    monkeypatch.setattr(products, "_product", recorded)
    monkeypatch.setattr(products, "_has_wider_products", lambda: True)
    monkeypatch.setattr(products, "_LEAST_WORK", 1)
    return shapes


def layer_of(kind, inputs, outputs):
    torch.manual_seed(0)
    if kind == "Conv1D":
        return Conv1D(outputs, inputs)
    return nn.Linear(inputs, outputs, bias=kind == "Linear")


def results(layer, x, weights):
    """The output, and the gradients of input and parameters."""
    x = x.detach().requires_grad_()
    y = layer(x)
    (y * weights).sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    return [y.detach(), x.grad, *gradients]


def differ(found, wanted):
    """Relative to the largest, as a sum is rounded."""
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach())


KINDS = ["Linear", "Linear without bias", "Conv1D"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(7, 5), (1, 40, 5), (2, 3, 11, 5), (1, 5)])
def test_a_layer_gives_output_and_gradients(made, kind, shape):
    layer = layer_of(kind, 5, 6)
    x, weights = torch.randn(shape), torch.randn(*shape[:-1], 6)
    wanted = results(copy.deepcopy(layer).double(), x.double(), weights.double())
    assert made == []
    with wide_products(layer):
        found = results(layer, x, weights)
    rows = x.numel() // 5
    through_weight = (5, rows, 6) if kind == "Conv1D" else (6, rows, 5)
    assert made == [(rows, 5, 6), (rows, 6, 5), through_weight]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        assert differ(one, other) < 1e-6
    for parameter, gradient in zip(layer.parameters(), found[2:], strict=True):
        assert gradient.stride() == parameter.stride()


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_gradients_may_have_any_strides(made, kind):
    layer, wide = layer_of(kind, 8, 6), torch.randn(16, 20)
    inputs = [
        wide[:8].T,
        wide[::2, ::2][:, :8],
        wide[:, 3:11],
        wide[:1, :8].expand(5, 8),
    ]
    inputs += [
        torch.arange(24.0).as_strided((9, 8), (1, 1)),
        torch.ones(()).expand(4, 8),
    ]
    for x in inputs:
        for weights in (torch.ones(()).expand(len(x), 6), torch.randn(6, len(x)).T):
            wanted = results(
                copy.deepcopy(layer).double(), x.double(), weights.double()
            )
            with wide_products(layer):
                found = results(layer, x, weights)
            for one, other in zip(found, wanted, strict=True):
                assert differ(one, other) < 1e-6
    assert len(made) == 3 * 2 * len(inputs)


def test_parameters_may_have_any_strides(made):
    layer, x = layer_of("Linear", 8, 6), torch.randn(5, 8)
    numbers = torch.randn(400)
    for strides in [(8, 1), (1, 6), (16, 2), (3, 1), (0, 1), (1, 0), (0, 0), (1, 1)]:
        layer.weight = nn.Parameter(numbers.as_strided((6, 8), strides))
        for bias_stride in (1, 2, 0):
            layer.bias = nn.Parameter(numbers[200:].as_strided((6,), (bias_stride,)))
            with torch.no_grad(), wide_products(layer):
                found = layer(x)
            wanted = x.double() @ layer.weight.double().T + layer.bias.double()
            assert differ(found, wanted) < 1e-6, (strides, bias_stride)
    assert len(made) == 8 * 3


def test_nan_and_infinity_stay_in_their_rows(made):
    layer, x = layer_of("Linear", 8, 6), torch.randn(3, 8)
    x[0, 2], x[2, 7] = float("nan"), float("inf")
    with wide_products(layer):
        y = layer(x)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()
    assert not y[2].isfinite().any()
    assert made == [(3, 8, 6)]


@pytest.mark.parametrize("needed", ["input", "weight", "bias", "nothing"])
def test_only_gradients_that_are_needed_are_made(made, needed):
    layer = layer_of("Linear", 8, 6).requires_grad_(False)
    x = torch.randn(5, 8)
    leaves = {"input": x, "weight": layer.weight, "bias": layer.bias}
    if needed in leaves:
        leaves[needed].requires_grad_()
    with wide_products(layer):
        y = layer(x)
    assert y.requires_grad == (needed != "nothing")
    if y.requires_grad:
        kept = y.grad_fn.next_functions[0][0].saved_tensors
        assert [t is not None for t in kept] == [needed == "weight", needed == "input"]
        y.sum().backward()
        wanted = torch.autograd.grad(layer(x).sum(), leaves[needed])
        assert differ(leaves[needed].grad, wanted[0]) < 1e-6
    assert len(made) == 1 + (needed in ("input", "weight"))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_gradients(made, kind):
    layer, x = layer_of(kind, 8, 6), torch.randn(5, 8, requires_grad=True)

    def penalty(layer, x):
        (gradient,) = torch.autograd.grad((layer(x) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad((gradient**2).sum(), [x, layer.weight])

    wanted = penalty(
        copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    )
    with wide_products(layer):
        found = penalty(layer, x)
    for one, other in zip(found, wanted, strict=True):
        assert differ(one, other) < 1e-5
    assert len(made) > 3


def leave_to_torch(change):
    """A layer and an input that oneDNN is not to be asked for, and what to be in meanwhile."""
    layer, x = layer_of("Linear", 8, 6), torch.randn(5, 8)
    if change == "float64":
        return layer.double(), x.double(), torch.no_grad()
    if change == "bfloat16":
        return layer.bfloat16(), x.bfloat16(), torch.no_grad()
    if change == "autocast":
        return layer, x, torch.autocast("cpu", dtype=torch.bfloat16)
    if change == "without oneDNN":
        return layer, x, torch.backends.mkldnn.flags(enabled=False)
    if change == "a vector":
        return layer, x[0], torch.no_grad()
    if change == "no rows":
        return layer, x[:0], torch.no_grad()
    if change == "a subclass of tensors":
        return layer, x.as_subclass(Marked), torch.no_grad()
    if change == "a nested tensor":
        return layer, torch.nested.nested_tensor([x, x[:3]]), torch.no_grad()
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(WithoutTranspose))
    return layer, x, torch.no_grad()


class Marked(torch.Tensor):
    pass


class WithoutTranspose(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.T.__get__:
            raise NotImplementedError("T")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(
    "change",
    [
        "float64",
        "bfloat16",
        "autocast",
        "without oneDNN",
        "a vector",
        "no rows",
        "a subclass of tensors",
        "a nested tensor",
        "a weight without a transpose",
    ],
)
def test_everything_else_is_left_to_torch(made, change):
    layer, x, context = leave_to_torch(change)
    with context:
        wanted = layer(x)
        with wide_products(layer):
            found = layer(x)
    assert found.dtype == wanted.dtype
    assert type(found) is type(wanted)
    for one, other in zip(found.unbind(), wanted.unbind(), strict=True):
        assert torch.equal(one, other)
    assert made == []


def test_a_small_product_is_left_to_torch(made, monkeypatch):
    layer, x = layer_of("Linear", 8, 6), torch.randn(5, 8)
    monkeypatch.setattr(products, "_LEAST_WORK", 5 * 8 * 6)
    with torch.no_grad(), wide_products(layer):
        layer(x[:4])
        assert made == []
        layer(x)
    assert made == [(5, 8, 6)]


def test_a_wrong_input_has_the_error_of_torch(made):
    layer = layer_of("Linear", 8, 6)
    with (
        wide_products(layer),
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
    ):
        layer(torch.randn(5, 7))
    assert made == []


def test_matrices(made):
    a, b = torch.randn(9, 8), torch.randn(6, 8).T
    wanted = a.double() @ b.double()
    assert differ(multiply(a, b), wanted) < 1e-6
    out, total = torch.full((9, 12), 7.0), torch.ones(9, 6)
    multiply_into(out[:, 3:9], a, b)
    assert differ(out[:, 3:9], wanted) < 1e-6
    assert (out[:, :3] == 7).all()
    assert (out[:, 9:] == 7).all()
    multiply_into(total, a, b, add=True)
    assert differ(total, wanted + 1) < 1e-6
    assert made == [(9, 8, 6)] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_that_torch_multiplies(made, monkeypatch, dtype):
    monkeypatch.setattr(products, "_LEAST_WORK", 1000)
    a, b = torch.randn(9, 8, dtype=dtype), torch.randn(8, 6, dtype=dtype)
    wanted = (a @ b).float()
    out, total = torch.empty(9, 6), torch.ones(9, 6)
    multiply_into(out, a, b)
    multiply_into(total, a, b, add=True)
    assert torch.equal(multiply(a, b), a @ b)
    assert torch.equal(out, wanted)
    assert torch.allclose(total, wanted + 1, atol=1e-6)
    assert made == []


def test_only_other_processors_with_wide_vectors_have_it(monkeypatch):
    has = products._has_wider_products.__wrapped__
    monkeypatch.setattr(_C, "is_intel_processor", lambda: False)
    monkeypatch.setattr(_C, "simd_levels", lambda: ["avx512", "avx2", "portable"])
    assert has() == torch.backends.mkl.is_available()
    monkeypatch.setattr(_C, "simd_levels", lambda: ["avx2", "portable"])
    assert not has()
    monkeypatch.setattr(_C, "simd_levels", lambda: ["avx512", "avx2", "portable"])
    monkeypatch.setattr(_C, "is_intel_processor", lambda: True)
    assert not has()


def test_a_processor_without_them_changes_no_layer(monkeypatch):
    monkeypatch.setattr(products, "_has_wider_products", lambda: False)
    layer = layer_of("Linear", 8, 6)
    with wide_products(layer):
        assert "forward" not in vars(layer)


def test_a_layer_elsewhere_is_not_changed(made):
    layer = nn.Linear(8, 6, device="meta")
    with wide_products(layer):
        assert "forward" not in vars(layer)
    assert made == []


def layers_of(model):
    return sum(isinstance(module, Conv1D) for module in model.modules())


def test_finetuning_uses_it(made, monkeypatch, gpt2, make):
    finetuner = make(gpt2, lr=1e-4)

    def adapted():
        with finetuner.adapted("the cat sat on the mat") as report:
            return report, torch.cat([p.detach().flatten() for p in gpt2.parameters()])

    # The first text of all is also compared with the logits of the model.
    adapted()
    made.clear()
    report, found = adapted()
    # Output and two gradients of every layer, and of the head.
    assert len(made) == 3 * (layers_of(gpt2) + 1) * report.forward_backward_passes
    made.clear()
    monkeypatch.setattr(products, "_has_wider_products", lambda: False)
    _, wanted = adapted()
    assert made == []
    # Of Intel's processors it may be 0.
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_scoring_uses_it(made, gpt2, tokenizer):
    text = "the cat sat on the mat"
    wanted = bits_per_byte(copy.deepcopy(gpt2).double(), tokenizer, text)
    assert made == []
    assert bits_per_byte(gpt2, tokenizer, text) == pytest.approx(wanted, rel=1e-6)
    assert len(made) == layers_of(gpt2) + 1


def test_embedding_uses_it(made, monkeypatch):
    embedder, texts = load_embedder(device="cpu"), ["the cat sat on the mat"]
    made.clear()
    found = embedder.encode(texts)
    assert len(made) > 0
    monkeypatch.setattr(products, "_has_wider_products", lambda: False)
    np.testing.assert_allclose(found, embedder.encode(texts), rtol=0, atol=1e-6)
