"""The gradients of ``simplex_lstsq`` and ``nnls``.

On the support ``S``, which a small change leaves as it is, the weights solve the conditions of an
optimum: ``G_SS w + mu = b_S`` with a sum of 1, or ``G_SS w = b_S``, where ``G = X X^T`` and
``b = X q``. For a gradient ``g`` of the weights, the adjoint ``v`` solves the same symmetric system
with ``g`` and a sum of 0. Then ``dL = v^T (db - dG w)``.
"""

from typing import Any

import torch
from torch import Tensor

from hullft_ops import _ops


class _Solution(_ops.Undifferentiable):
    """Weights and residual by pool and query; the rest has no gradient."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op, pool, query, _, _, sizes, is_gram = inputs
        ctx.save_for_backward(pool, query, output[0])
        ctx.is_gram, ctx.is_ragged = is_gram, sizes is not None
        ctx.set_materialize_grads(False)
        if torch.compiler.is_compiling():  # its graphs have gradients of all others
            ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        of_weights, of_residual, of_gap = gradients[:3]
        if of_gap is not None and not torch.compiler.is_compiling():
            raise NotImplementedError(f"{ctx.op}: the gap has no gradient")
        # Once: checkpointing makes them again.
        pool, query, weights = ctx.saved_tensors
        dtype, is_shared = pool.dtype, pool.dim() == 2
        if ctx.is_ragged and not ctx.is_gram:  # what is past a pool's end is never read
            pool = pool.where((weights > 0)[:, :, None], 0.0)
        v = torch.zeros_like(weights)
        if of_weights is not None:
            on_simplex = ctx.op == "simplex_lstsq"
            v = _adjoint(pool, weights, of_weights, ctx.is_gram, on_simplex)
        if of_residual is None:
            of_residual = torch.zeros_like(weights[:, 0])
        formula = _of_gram if ctx.is_gram else _of_rows
        pairs, of_query = formula(pool, query, weights, v, of_residual)
        x, y = (torch.stack(side, dim=1) for side in zip(*pairs, strict=True))
        of_pool = x.flatten(0, 1).mT @ y.flatten(0, 1) if is_shared else x.mT @ y
        return None, of_pool.to(dtype), of_query.to(dtype), *[None] * 4


class _Adjoint(_ops.Undifferentiable):
    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            "simplex_lstsq, nnls: the gradients are not differentiable themselves"
        )


_Gradients = tuple[list[tuple[Tensor, Tensor]], Tensor]


def _of_gram(
    gram: Tensor, products: Tensor, weights: Tensor, v: Tensor, of_difference: Tensor
) -> _Gradients:
    """Outer products that sum to the gradient of gram, which is symmetric, and that of products."""
    step = of_difference[:, None] * weights
    half = (step - v) / 2
    return [(half, weights), (weights, half)], v - 2 * step


def _of_rows(
    pool: Tensor, query: Tensor, weights: Tensor, v: Tensor, of_residual: Tensor
) -> _Gradients:
    """Outer products that sum to the gradient of pool, and that of query."""
    rows = pool.to(weights.dtype)
    residual = query.to(weights.dtype) - _combine(weights, rows)
    length = residual.norm(dim=1)
    # A residual of 0 has no derivative.
    slope = of_residual * (length > 0) / length.where(length > 0, 1.0)
    of_query = _combine(v, rows) + slope[:, None] * residual
    return [(v, residual), (-weights, of_query)], of_query


def _combine(weights: Tensor, rows: Tensor) -> Tensor:
    """[B, d], of weights [B, K] and rows [K, d] or [B, K, d]."""
    return weights @ rows if rows.dim() == 2 else (weights[:, None] @ rows)[:, 0]


def _adjoint(*arguments: Any) -> Any:
    if torch.compiler.is_compiling():  # has no second derivatives
        return _ops.ops.lstsq_adjoint(*arguments)
    return _Adjoint.apply("lstsq_adjoint", *arguments)  # type: ignore[no-untyped-call]


_ops.gradients.update(simplex_lstsq=_Solution, nnls=_Solution)


@torch.library.impl("hullft_ops::lstsq_adjoint", "cuda")
def _adjoint_on_cuda(*arguments: Any) -> Any:
    from hullft_ops import reference  # slow to import

    return reference.lstsq_adjoint(*arguments)
