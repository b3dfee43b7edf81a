"""The gradients of ``simplex_lstsq`` and ``nnls``.

On the support ``S``, which a small change leaves as it is, the weights solve the conditions of an
optimum: ``G_SS w + mu = b_S`` with a sum of 1, or ``G_SS w = b_S``, where ``G = X X^T`` and
``b = X q``. For a gradient ``g`` of the weights, the adjoint ``v`` solves the same symmetric system
with ``g`` and a sum of 0. Then ``dL = v^T (db - dG w)``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hullft_ops import _ops

# A pivot below this share of its diagonal belongs to a row that depends on others.
_DEPENDENT = 1e-12


@torch.library.custom_op("hullft::lstsq_adjoint", mutates_args=())
def _adjoint_operator(
    pool: Tensor, weights: Tensor, gradient: Tensor, is_gram: bool, on_simplex: bool
) -> Tensor:
    """``v`` [B, K], 0 outside the support, for pool [K, d] or [B, K, d], or a Gram matrix.

    It is an operator because its shapes depend on the supports, which a compiled graph cannot see.
    """
    counts = (weights > 0).sum(1, keepdim=True)
    m = max(int(counts.max()), 1) if len(weights) else 1
    places = weights.argsort(dim=1, descending=True)[:, :m]
    mask = torch.arange(m, device=pool.device) < counts  # [B, m]
    batch = torch.arange(len(weights), device=pool.device)[:, None]
    g = gradient.gather(1, places).double()
    if on_simplex:
        # Differences from the row of the largest weight, whose value is the rest.
        g, mask = g[:, 1:] - g[:, :1], mask[:, 1:]
    if is_gram:
        grams = pool.expand(len(weights), -1, -1) if pool.dim() == 2 else pool
        system = grams[batch[..., None], places[:, :, None], places[:, None, :]]
        system = (system + system.mT).double() / 2
        if on_simplex:
            system = system - system[:, :1] - system[:, :, :1] + system[:, :1, :1]
            system = system[:, 1:, 1:]
        system = system * (mask[:, :, None] & mask[:, None, :])
    else:
        support = (pool[places] if pool.dim() == 2 else pool[batch, places]).double()
        if on_simplex:
            support = support[:, 1:] - support[:, :1]
        support *= mask[:, :, None]
        system = support @ support.mT
    v = _solve(system, g * mask, mask, on_simplex)
    adjoint = torch.zeros_like(weights)
    return adjoint.scatter_(1, places, v.to(weights.dtype))


@_adjoint_operator.register_fake
def _(
    pool: Tensor, weights: Tensor, gradient: Tensor, is_gram: bool, on_simplex: bool
) -> Tensor:
    return torch.empty_like(weights)


def _solve(system: Tensor, g: Tensor, mask: Tensor, on_simplex: bool) -> Tensor:
    """The solution of each system, 0 off its mask; of least norm where the rows are dependent.

    On the simplex a first value precedes it, so that the sum is 0.
    """
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal += ~mask
    factor, info = torch.linalg.cholesky_ex(system)
    v = torch.cholesky_solve(g[:, :, None], factor)[:, :, 0]
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    is_singular = (info > 0) | (pivots <= _DEPENDENT * diagonal).any(1)
    if is_singular.any():
        diagonal -= (~mask).double()
        system, g, ones = (t[is_singular] for t in (system, g, mask.double()))
        v[is_singular] = _least_norm(system, g, ones, on_simplex)
    return torch.cat([-v.sum(1, keepdim=True), v], dim=1) if on_simplex else v


def _least_norm(system: Tensor, g: Tensor, ones: Tensor, on_simplex: bool) -> Tensor:
    """The shortest of all solutions; on the simplex its first value counts."""
    metric = torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
    if on_simplex:
        metric = metric + ones[:, :, None] * ones[:, None, :]
    root = torch.linalg.inv(torch.linalg.cholesky(metric))
    scaled = root @ system @ root.mT
    inverse = torch.linalg.pinv(scaled, rtol=_DEPENDENT, hermitian=True)
    solution: Tensor = root.mT @ inverse @ root @ g[:, :, None]
    return solution[:, :, 0]


def _combine(weights: Tensor, pool: Tensor) -> Tensor:
    """[B, d], of weights [B, K] and pool [K, d] or [B, K, d]."""
    if pool.dim() == 2:
        return weights @ pool
    return (weights[:, None] @ pool)[:, 0]


def _outer(pairs: list[tuple[Tensor, Tensor]], is_shared: bool) -> Tensor:
    """The sum of x^T y for pairs x [B, m], y [B, n]: of each query, or of all."""
    x, y = (torch.stack(side, dim=1) for side in zip(*pairs, strict=True))
    if is_shared:
        return x.flatten(0, 1).mT @ y.flatten(0, 1)
    return x.mT @ y


def _of_gram(
    weights: Tensor, v: Tensor, of_difference: Tensor | None, is_shared: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of gram, which counts as symmetric, and products."""
    half, of_products = -v / 2, v
    if of_difference is not None:
        step = of_difference[:, None] * weights
        half, of_products = half + step / 2, v - 2 * step
    return _outer([(half, weights), (weights, half)], is_shared), of_products


def _of_rows(
    pool: Tensor,
    query: Tensor,
    weights: Tensor,
    v: Tensor,
    of_residual: Tensor | None,
    is_shared: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of pool and query."""
    rows = pool.to(weights.dtype)
    residual = query.to(weights.dtype) - _combine(weights, rows)
    along = of_query = _combine(v, rows)
    if of_residual is not None:
        length = residual.norm(dim=1)
        # A residual of 0 has no derivative.
        slope = (length > 0) / length.where(length > 0, 1.0)
        step = (of_residual * slope)[:, None]
        v, of_query = v - step * weights, along + step * residual
    return _outer([(v, residual), (weights, -along)], is_shared), of_query


def _register(op: str, on_simplex: bool) -> None:
    operator = getattr(_ops.ops, op).default

    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]
    ) -> None:
        pool, query, _, _, sizes, is_gram = inputs
        weights, _, *others = output
        ctx.save_for_backward(pool, query, weights)
        ctx.is_gram, ctx.is_ragged = is_gram, sizes is not None
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        pool, query, weights = ctx.saved_tensors
        of_weights, of_residual = gradients[:2]
        is_shared, dtype = pool.dim() == 2, pool.dtype
        if ctx.is_ragged and not ctx.is_gram:  # what is past a pool's end is never read
            pool = pool.where((weights > 0)[:, :, None], 0.0)
        v = torch.zeros_like(weights)
        if of_weights is not None:
            v = _adjoint(pool, weights, of_weights, ctx.is_gram, on_simplex)
        if ctx.is_gram:
            of_inputs = _of_gram(weights, v, of_residual, is_shared)
        else:
            of_inputs = _of_rows(pool, query, weights, v, of_residual, is_shared)
        return *(gradient.to(dtype) for gradient in of_inputs), *[None] * 4

    torch.library.register_autograd(
        f"hullft_ops::{op}", backward, setup_context=setup_context
    )

    apply = _transformable(operator, setup_context, backward)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        if torch._C._are_functorch_transforms_active():
            return apply(*arguments)
        if arguments[0].requires_grad or arguments[1].requires_grad:
            return operator(*arguments)
        # Past the kernel of autograd, which is in Python and takes 7 us.
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    _ops.with_gradients[op] = call


def _transformable(
    operator: Any, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The operator for torch.func, which takes no gradients of registered operators."""

    def apply(*arguments: Any) -> Any:
        return node.apply(*arguments)

    methods = {
        "forward": lambda *arguments: operator(*arguments),
        "setup_context": setup_context,
        "backward": backward,
        "vmap": _ops.vmap_rule(operator, apply),
    }
    node: Any = type(
        operator.name(),
        (torch.autograd.Function,),
        {name: staticmethod(method) for name, method in methods.items()},
    )
    return apply


def _no_second_derivative(ctx: Any, gradient: Tensor) -> None:
    raise NotImplementedError(
        "simplex_lstsq, nnls: the gradients are not differentiable themselves"
    )


_ADJOINT = _adjoint_operator._opoverload
torch.library.register_autograd(_adjoint_operator, _no_second_derivative)
_transformable_adjoint = _transformable(
    _ADJOINT, lambda ctx, inputs, output: None, _no_second_derivative
)


def _adjoint(*arguments: Any) -> Any:
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return _ADJOINT(*arguments)
    return _transformable_adjoint(*arguments)


_register("simplex_lstsq", on_simplex=True)
_register("nnls", on_simplex=False)
