"""The gradients of ``simplex_lstsq`` and ``nnls``, in both modes and to any order.

On the support ``S``, which a small change leaves as it is, the weights solve the conditions of an
optimum: ``G_SS w + mu = b_S`` with a sum of 1, or ``G_SS w = b_S``, where ``G = X X^T`` and
``b = X q``. So ``dw = M (db - dG w)``, where the symmetric ``M`` solves that system, with a sum of
0: the operator ``lstsq_adjoint``. Its own derivative is ``d(M g) = M (dg - dG M g)``.

``M g`` is float64: it has the size of 1 / square, which float32 may not hold.
"""

from typing import Any

import torch
from torch import Tensor

from hullft_ops._autograd import Undifferentiable, gradients

# [B, K] and [B, d], whose outer products are summed.
Pairs = list[tuple[Tensor, Tensor]]


class Solution(Undifferentiable):
    """Weights and residual by pool and query; the rest has no gradient."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op, pool, query, _, _, sizes, is_gram = inputs
        tensors = pool, query, *output[:2]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.is_gram, ctx.is_ragged = is_gram, sizes is not None
        ctx.on_simplex = ctx.op == "simplex_lstsq"
        # A compiled graph differentiates what it returns.
        ctx.mark_non_differentiable(
            *output[2 if torch.compiler.is_compiling() else 3 :]
        )
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        of_weights, of_residual, of_gap = gradients[:3]
        if of_gap is not None:
            raise NotImplementedError(f"{ctx.op}: the gap has no gradient")
        # Once: checkpointing makes them again.
        pool, query, weights, residual = ctx.saved_tensors
        if ctx.is_ragged:
            pool = _without_unused(pool, weights)
        if of_weights is None:
            v = torch.zeros_like(weights)
        else:
            v = _adjoint(ctx, pool, weights, of_weights)
        if of_residual is None:
            of_residual = torch.zeros_like(residual)
        if ctx.is_gram:
            step = of_residual[:, None] * weights
            pairs = _of_quadratic(pool, step - v, weights, ctx.is_gram)
            of_query = v - 2 * step
        else:
            rest = _rest(pool, query, weights)
            of_query = of_residual[:, None] * _over(rest, residual) + _combine(v, pool)
            pairs = [(v, rest), (-weights, of_query)]
        of_pool = _summed(pairs, pool) if ctx.needs_input_grad[1] else None
        return None, of_pool, of_query.to(query.dtype), *[None] * 4

    @staticmethod
    def jvp(ctx: Any, _: None, of_pool: Any, of_query: Any, *options: None) -> Any:
        pool, query, weights, residual = ctx.saved_tensors
        of_pool = torch.zeros_like(pool) if of_pool is None else of_pool
        of_query = torch.zeros_like(query) if of_query is None else of_query
        if ctx.is_ragged:
            pool = _without_unused(pool, weights)
            of_pool = _without_unused(of_pool, weights)
        if ctx.is_gram:
            change = _change(pool, of_pool, weights, ctx.is_gram)
            slope = of_query - change
            of_residual = (weights * (change - 2 * of_query)).sum(-1)
        else:
            rest, change = (
                _rest(pool, query, weights),
                _rest(of_pool, of_query, weights),
            )
            slope = _products(of_pool, rest) + _products(pool, change)
            of_residual = (_over(rest, residual) * change).sum(-1)
        of_weights = _adjoint(ctx, pool, weights, slope).to(weights.dtype)
        of_gap = None if torch.compiler.is_compiling() else torch.zeros_like(residual)
        return of_weights, of_residual.to(weights.dtype), of_gap, None, None


class Adjoint(Undifferentiable):
    """``M g`` by pool and ``g``."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, pool, weights, _, ctx.is_gram, ctx.on_simplex = inputs
        ctx.save_for_backward(pool, weights, output)
        ctx.save_for_forward(pool, weights, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        pool, weights, v = ctx.saved_tensors
        u = _adjoint(ctx, pool, weights, gradients[0])
        pairs = _of_quadratic(pool, -u, v, ctx.is_gram)
        of_pool = _summed(pairs, pool) if ctx.needs_input_grad[1] else None
        return None, of_pool, None, u, None, None

    @staticmethod
    def jvp(ctx: Any, _: None, of_pool: Any, __: Any, of_g: Any, *options: None) -> Any:
        pool, weights, v = ctx.saved_tensors
        return _adjoint(
            ctx, pool, weights, of_g - _change(pool, of_pool, v, ctx.is_gram)
        )


gradients.update(simplex_lstsq=Solution, nnls=Solution)


def _adjoint(ctx: Any, pool: Tensor, weights: Tensor, g: Tensor) -> Tensor:
    solved: Tensor = Adjoint.apply(  # type: ignore[no-untyped-call]
        "lstsq_adjoint", pool, weights, g.double(), ctx.is_gram, ctx.on_simplex
    )
    return solved


def _without_unused(pool: Tensor, weights: Tensor) -> Tensor:
    """What is past a pool's end may be NaN."""
    is_used = weights > 0
    if pool.dim() == 2:
        is_used = is_used.any(0)
    return pool.where(is_used[..., None], 0.0)


def _rest(pool: Tensor, query: Tensor, weights: Tensor) -> Tensor:
    """[B, d]: the query less the combination of rows."""
    return query.to(weights.dtype) - _combine(weights, pool)


def _over(rest: Tensor, residual: Tensor) -> Tensor:
    """[B, d]: the derivative of the residual, the length of ``rest``; 0 where that is 0."""
    is_positive = (residual > 0)[:, None]
    return is_positive * rest / residual[:, None].where(is_positive, 1.0)


def _of_quadratic(pool: Tensor, u: Tensor, y: Tensor, is_gram: bool) -> Pairs:
    """Their outer products sum to the gradient of the pool in ``u^T G y``."""
    if is_gram:  # which counts as symmetric
        return [(u / 2, y), (y / 2, u)]
    return [(u, _combine(y, pool)), (y, _combine(u, pool))]


def _change(pool: Tensor, of_pool: Tensor, y: Tensor, is_gram: bool) -> Tensor:
    """[B, K]: ``dG y``"""
    if is_gram:
        return (_combine(y, of_pool) + _combine(y, of_pool.mT)) / 2
    of_rows = _products(pool, _combine(y, of_pool))
    return of_rows + _products(of_pool, _combine(y, pool))


def _combine(factors: Tensor, pool: Tensor) -> Tensor:
    """[B, d], of factors [B, K] and rows [K, d] or [B, K, d]."""
    dtype = _real(pool)
    if factors.dtype == dtype:
        return _product(factors, pool.to(dtype))
    rest, root = _halves(factors, dtype)
    return _product(rest, pool.to(dtype)) * root


def _products(pool: Tensor, x: Tensor) -> Tensor:
    """[B, K] in float64: of the rows with x [B, d]."""
    dtype = _real(pool)
    rest, root = _halves(x, dtype)
    return _product(rest, pool.to(dtype).mT).double() * root.double()


def _summed(pairs: Pairs, pool: Tensor) -> Tensor:
    """The sum of their outer products, over the batch for a pool [K, d]."""
    dtype = _real(pool)
    left, right = [], []
    for x, y in pairs:
        rest, root = _halves(x, dtype)
        left.append(rest)
        right.append(y.to(dtype) * root)
    if pool.dim() == 2:
        total = left[0].mT @ right[0] + left[1].mT @ right[1]
    else:
        total = torch.stack(left, dim=2) @ torch.stack(right, dim=1)
    return total.to(pool.dtype)


def _product(x: Tensor, rows: Tensor) -> Tensor:
    """[B, K] times [K, d] or [B, K, d]."""
    return x @ rows if rows.dim() == 2 else (x[:, None] @ rows)[:, 0]


def _halves(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two factors of x [B, n], the second one a query, each of the size of a root of x.

    If x is of the order of 1 / square, they are of the order of 1 / length.
    """
    exponent = torch.frexp(x.abs().amax(dim=-1, keepdim=True)).exponent
    root = torch.exp2((exponent // 2).to(x.dtype))
    return (x / root).to(dtype), root.to(dtype)


def _real(pool: Tensor) -> torch.dtype:
    """The dtype of the weights."""
    return torch.float64 if pool.dtype == torch.float64 else torch.float32
