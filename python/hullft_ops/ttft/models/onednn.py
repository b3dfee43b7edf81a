"""float32 matrix products by oneDNN, on processors whose vectors MKL leaves half empty."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hullft_ops import _C
from hullft_ops.ttft.models.forwards import class_forward, replaced_forwards

# oneDNN takes a millisecond or two to compile code for every new shape. Products with fewer
# multiply-adds are not worth that.
_LEAST_WORK = 2**24


def wide_products(model: nn.Module) -> AbstractContextManager[None]:
    """Make the model's linear layers multiply with oneDNN where that is faster: large products of
    plain float32 tensors on the CPU, outside of autocast."""
    on_cpu = any(parameter.device.type == "cpu" for parameter in model.parameters())
    if not (_has_wider_products() and on_cpu):
        return nullcontext()
    from transformers.pytorch_utils import Conv1D

    return replaced_forwards(model, {nn.Linear: _forward, Conv1D: _forward})


def multiply_into(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
    """``out[:] = a @ b``, or ``out += a @ b``. ``out`` has their dtype or a wider one."""
    if out.dtype == a.dtype and not _serves(a, b):
        out.addmm_(a, b, beta=int(add))
    elif add:
        out += multiply(a, b)
    else:
        out.copy_(multiply(a, b))


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for matrices."""
    return _product(a, b) if _serves(a, b) else a @ b


@cache
def _has_wider_products() -> bool:
    # torch multiplies float32 with MKL, which runs its AVX-512 code only on Intel's processors. On
    # a Zen 5 (2 threads, torch 2.13) oneDNN is twice as fast.
    return (
        "avx512" in _C.simd_levels()
        and not _C.is_intel_processor()
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _forward(layer: Any, x: Tensor) -> Tensor:
    b: Tensor = layer.weight
    # Not every quantized weight has a transpose.
    if type(layer) is nn.Linear and _is_dense_float32(b):
        b = b.T
    if not _serves(x, b, layer.bias):
        return class_forward(layer, x)
    return _multiply_add(x.flatten(0, -2), b, layer.bias).view(*x.shape[:-1], -1)


def _serves(a: Tensor, b: Tensor, bias: Tensor | None = None) -> bool:
    tensors = (a, b) if bias is None else (a, b, bias)
    return (
        _has_wider_products()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and all(map(_is_dense_float32, tensors))
        and a.dim() > 1
        and a.shape[-1] == b.shape[0]
        and (bias is None or bias.shape == b.shape[1:])
        and a.numel() * b.shape[1] >= _LEAST_WORK
    )


def _is_dense_float32(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not tensor.is_nested
    )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    (rows, columns), (down, right) = b.shape, b.stride()
    # The operator ignores a bias's strides, and refuses some strides of a second matrix.
    along = (right == 1 and down >= columns) or (down == 1 and right >= rows)
    factor = b.T if along else b.T.contiguous()
    offset = None if bias is None else bias.contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        a, factor, offset, "none", [], ""
    )
    return product


def _multiply_add(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = _Product.apply(a, b, bias)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        needs_a, needs_b, _ = ctx.needs_input_grad
        ctx.save_for_backward(a if needs_b else None, b if needs_a else None)
        ctx.is_transposed = b.T.is_contiguous()
        return _product(a, b, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        needs_a, needs_b, needs_bias = ctx.needs_input_grad
        of_a = _multiply_add(grad, b.T) if needs_a else None
        of_b = None
        if needs_b:
            # In the parameter's strides, so that its ``.grad`` takes it without a copy.
            of_b = (
                _multiply_add(grad.T, a).T
                if ctx.is_transposed
                else _multiply_add(a.T, grad)
            )
        return of_a, of_b, grad.sum(0) if needs_bias else None
