"""Quadratic programs of the Gram matrix, one by one: what libraries use for least squares over the
simplex, or with non-negative weights.

Each takes pools [B, K, d] and queries [B, d], and gives weights [B, K].
"""

from collections.abc import Callable

import numpy as np
import torch

Solve = Callable[[np.ndarray, np.ndarray, bool], np.ndarray]


def quadprog(gram: np.ndarray, products: np.ndarray, on_simplex: bool) -> np.ndarray:
    """Goldfarb and Idnani's dual active set."""
    from quadprog import solve_qp

    rows = len(gram)
    bounds, levels = np.eye(rows), np.zeros(rows)
    if on_simplex:
        bounds = np.concatenate([np.ones((rows, 1)), bounds], axis=1)
        levels = np.concatenate([[1.0], levels])
    weights: np.ndarray = solve_qp(gram, products, bounds, levels, int(on_simplex))[0]
    return weights


def daqp(gram: np.ndarray, products: np.ndarray, on_simplex: bool) -> np.ndarray:
    """A dual active set, with its own factors."""
    import daqp

    rows = len(gram)
    upper, lower = np.full(rows, 1e30), np.zeros(rows)
    sense, sums = np.zeros(rows, dtype=np.int32), np.zeros((0, rows))
    if on_simplex:
        sums = np.ones((1, rows))
        upper, lower = (np.append(bound, 1.0) for bound in (upper, lower))
        sense = np.append(sense, 5).astype(np.int32)
    weights: np.ndarray = daqp.solve(gram, -products, sums, upper, lower, sense)[0]
    return weights


def piqp(gram: np.ndarray, products: np.ndarray, on_simplex: bool) -> np.ndarray:
    """An interior point with proximal terms."""
    import piqp

    rows = len(gram)
    solver = piqp.DenseSolver()
    solver.settings.eps_abs = solver.settings.eps_rel = 1e-12
    sums, total = (np.ones((1, rows)), np.ones(1)) if on_simplex else (None, None)
    solver.setup(gram, -products, sums, total, x_l=np.zeros(rows))
    solver.solve()
    weights: np.ndarray = solver.result.x
    return weights


def one_by_one(
    solve: Solve, pools: np.ndarray, queries: np.ndarray, on_simplex: bool
) -> torch.Tensor:
    """The Gram matrix counts: of a pool that queries share, [1, K, d], once."""
    grams, transposed = pools @ pools.mT, pools.mT
    products = (queries[:, None] @ transposed)[:, 0]
    weights = [
        solve(grams[b % len(grams)], product, on_simplex)
        for b, product in enumerate(products)
    ]
    return torch.from_numpy(np.stack(weights).clip(min=0))


def jaxnnls(pools: np.ndarray, queries: np.ndarray) -> Callable[[], torch.Tensor]:
    """Its primal-dual interior point, compiled for the batch. It knows no sum."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)  # before jaxnnls looks
    from jaxnnls.pdip import solve_nnls

    is_shared = len(pools) == 1
    x, q = jnp.asarray(pools[0] if is_shared else pools), jnp.asarray(queries)

    def solve(x: "jax.Array", q: "jax.Array") -> "jax.Array":
        gram = x @ jnp.swapaxes(x, -1, -2)
        products = q @ x.T if is_shared else (q[:, None] @ jnp.swapaxes(x, 1, 2))[:, 0]
        over = (None, 0) if is_shared else (0, 0)
        return jax.vmap(lambda g, b: solve_nnls(g, b)[0], over)(gram, products)

    compiled = jax.jit(solve)
    return lambda: torch.from_numpy(np.asarray(compiled(x, q)).copy())
