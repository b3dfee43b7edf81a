"""Linear layers by oneDNN against float64, on any processor that has it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from hullft_ops import _C
from hullft_ops.ttft import products
from hullft_ops.ttft.products import add_product, multiply, multiply_into, wide_products

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch was built without oneDNN"
)
TOKENS = torch.arange(1, 30)[None]


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
    inputs = [wide[:8].T, wide[::2, ::2][:, :8], wide[:, 3:11], wide[:1, :8].expand(5, 8)]
    inputs += [torch.arange(24.0).as_strided((9, 8), (1, 1)), torch.ones(()).expand(4, 8)]
    for x in inputs:
        for weights in (torch.ones(()).expand(len(x), 6), torch.randn(6, len(x)).T):
            wanted = results(copy.deepcopy(layer).double(), x.double(), weights.double())
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

    wanted = penalty(copy.deepcopy(layer).double(), x.detach().double().requires_grad_())
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
    return Scaled(8, 8), x, torch.no_grad()


class Marked(torch.Tensor):
    pass


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


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
        "a subclass of layers",
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
    assert torch.equal(found, wanted)
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
    with wide_products(layer), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(5, 7))
    assert made == []


def test_the_forward_is_put_back(made):
    layers = nn.Sequential(layer_of("Linear", 8, 6), layer_of("Conv1D", 6, 4))
    before = [dict(vars(module)) for module in layers.modules()]

    def leave_with(error):
        with wide_products(layers), wide_products(layers):
            layers(torch.randn(5, 8))
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            leave_with(error())
        assert [dict(vars(module)) for module in layers.modules()] == before
    assert made == [(5, 8, 6), (5, 6, 4)] * 2


def test_somebody_elses_forward_stays(made):
    layer, x = layer_of("Linear", 8, 6), torch.randn(5, 8)
    layer.forward = mine = lambda x: x + 1
    with wide_products(layer):
        assert torch.equal(layer(x), x + 1)
    assert layer.forward is mine
    assert made == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_run_again_the_same(made, gpt2, reentrant):
    def gradients():
        cross_entropy(gpt2(input_ids=TOKENS).logits[0, :-1], TOKENS[0, 1:]).backward()
        found = [parameter.grad for parameter in gpt2.parameters()]
        gpt2.zero_grad()
        return found

    wanted = gradients()
    with wide_products(gpt2):
        gradients()
        once = len(made)
        gpt2.gradient_checkpointing_enable({"use_reentrant": reentrant})
        # Checkpoints are for training, where GPT-2 has dropout.
        gpt2.train()
        for module in gpt2.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        found = gradients()
    layers = sum(isinstance(module, Conv1D) for module in gpt2.modules())
    assert len(made) == 2 * once + layers
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def compiled(model, how):
    if how == "model":
        return torch.compile(model, backend="aot_eager", fullgraph=True)
    if how == "in place":
        model.compile(backend="aot_eager", fullgraph=True)
    else:
        model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    return model


@pytest.mark.parametrize("how", ["model", "in place", "forward"])
def test_a_compiled_model_keeps_its_own_products(made, gpt2, how):
    with torch.no_grad():
        wanted = gpt2(input_ids=TOKENS).logits
        model = compiled(gpt2, how)
        for _ in range(2):
            with wide_products(model):
                assert torch.allclose(model(input_ids=TOKENS).logits, wanted, atol=1e-6)
            assert torch.allclose(model(input_ids=TOKENS).logits, wanted, atol=1e-6)
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
    add_product(total, a, b)
    assert differ(total, wanted + 1) < 1e-6
    assert made == [(9, 8, 6)] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_that_torch_multiplies(made, monkeypatch, dtype):
    monkeypatch.setattr(products, "_LEAST_WORK", 1000)
    a, b = torch.randn(9, 8, dtype=dtype), torch.randn(8, 6, dtype=dtype)
    wanted = (a @ b).float()
    out, total = torch.empty(9, 6), torch.ones(9, 6)
    multiply_into(out, a, b)
    add_product(total, a, b)
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
