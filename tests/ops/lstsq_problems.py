"""Problems of least squares that are hard on rounding, and a proof that a solution is optimal."""

import math
from functools import partial

import torch

import hullft_ops
from hullft_ops import reference

KINDS = [
    "plain",
    "copies",
    "near copies",
    "one long row",
    "rows of every length",
    "far from 0",
    "query in hull",
    "query in pool",
    "zero rows",
    "zero query",
    "nearly on a line",
]


def make(
    seed: int, batch: int, rows: int, dim: int, kind: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 pool [batch, rows, dim] and query [batch, dim]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)

    pool, query = normal(rows, dim), normal(dim)
    sources = torch.randint(max(rows // 4, 1), (rows,), generator=generator)
    if kind == "copies":
        pool = pool[:, sources]
    elif kind == "near copies":
        pool = pool[:, sources] + 1e-8 * pool
    elif kind == "one long row":
        pool[:, rows // 2] *= 1e6
    elif kind == "rows of every length":
        pool = pool * 10 ** (3 * normal(rows, 1)).clamp(-4, 2)
    elif kind == "far from 0":
        pool, query = pool + 100, query + 100
    elif kind == "query in hull":
        query = (normal(1, rows).softmax(-1) @ pool)[:, 0]
    elif kind == "query in pool":
        query = pool[:, rows // 2].clone()
    elif kind == "zero rows":
        pool[:, ::3] = 0
    elif kind == "zero query":
        query = torch.zeros_like(query)
    elif kind == "nearly on a line":
        pool = normal(rows, 1) * normal(1, dim) + 1e-7 * pool

    return pool, query


def spectra(
    seed: int, batch: int, rows: int, width: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Peaks, ``width`` times as wide as they are apart, float32 [rows, 200], and noisy mixtures.

    From 1.42 to 1.97 the condition number grows from 100 to 10,000.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = torch.linspace(0, rows - 1, 200, dtype=torch.float64)
    centers = torch.arange(rows, dtype=torch.float64)
    pool = torch.exp(-(((columns - centers[:, None]) / width) ** 2)).float()
    shares = torch.rand(batch, rows, generator=generator) ** 3
    shares /= shares.sum(1, keepdim=True)
    noise = 1e-3 * torch.randn(batch, 200, generator=generator)
    return pool, shares @ pool + noise


def conditioned(
    seed: int, batch: int, rows: int, condition: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 pools [batch, rows, 200] of that condition number, and noisy mixtures of all rows."""
    generator = torch.Generator().manual_seed(seed)
    random = partial(torch.randn, generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(random(batch, rows, rows)).Q
    right = torch.linalg.qr(random(batch, 200, rows)).Q
    values = torch.logspace(0, -math.log10(condition), rows, dtype=torch.float64)
    pool = (left * values) @ right.mT
    query = (random(batch, 1, rows).softmax(-1) @ pool)[:, 0]
    query += random(batch, 200) / (1000 * condition)
    return pool.float(), query.float()


def adjoints(
    pool: torch.Tensor,
    weights: torch.Tensor,
    gradient: torch.Tensor,
    is_gram: bool,
    on_simplex: bool,
) -> torch.Tensor:
    """The reference's, of each query."""
    of_each = zip(pool.expand(len(weights), -1, -1), weights, gradient, strict=True)
    return torch.stack(
        [reference.lstsq_adjoint(*each, is_gram, on_simplex) for each in of_each]
    )


def largest_square(pool: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """[batch]: the largest squared norm of the rows and the query."""
    rows = pool.square().sum(-1).max(-1).values
    return torch.maximum(rows, query.square().sum(-1))


def squared(
    pool: torch.Tensor, query: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """[batch]: the squared residual, in float64."""
    current = weights.double().unsqueeze(-2) @ pool.double()
    return (query.double() - current.squeeze(-2)).square().sum(-1)


def excess(
    pool: torch.Tensor, query: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """[batch]: how far the squared residual is above its minimum over the simplex, at most.

    Twice the Frank-Wolfe gap, from the rows: no other solver is needed to know the optimum.
    """
    current = (weights.unsqueeze(-2) @ pool).squeeze(-2)
    residual = query - current
    correlations = (pool @ residual.unsqueeze(-1)).squeeze(-1)
    return 2 * (correlations.max(-1).values - (current * residual).sum(-1))


def assert_nearest_of_the_hull(
    pool: torch.Tensor, query: torch.Tensor, solution: hullft_ops.LstsqSolution
) -> None:
    """Of pools [batch, rows, dim]. The relative bound of 1e-9 follows unless the residual is 0."""
    weights = solution.weights
    scale = largest_square(pool, query)

    assert (weights >= 0).all()
    assert (weights.sum(-1) - 1).abs().max() <= 1e-12
    assert torch.equal((weights > 0).sum(-1), solution.support_size)

    above = excess(pool, query, weights)

    assert (above <= 1e-13 * scale).all()
    assert (above <= 2 * solution.gap + 1e-13 * scale).all()

    residual = (query - (weights.unsqueeze(-2) @ pool).squeeze(-2)).norm(dim=-1)

    assert ((residual - solution.residual).abs() <= 1e-13 * scale.sqrt()).all()
