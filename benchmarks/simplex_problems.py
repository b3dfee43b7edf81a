"""Six kinds of least squares over the simplex."""

import numpy as np
import torch

from benchmarks.peers import times
from benchmarks.pools import distinct_pools, tiled

KINDS = [
    "synthetic-control",
    "mixtures",
    "positive",
    "ill-conditioned",
    "minimum-norm",
    "text",
]


def problem(kind: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A pool [K, d], or pools [batch, K, d], and queries [batch, d], in float64.

    All problems of a batch are distinct, but for those of text, of which there are six.
    """
    if kind == "text":
        pools, queries = distinct_pools(200, 384)  # the last is random
        return tiled(pools[:-1], batch).double(), tiled(queries[:-1], batch).double()
    random = np.random.default_rng(0)
    pool = torch.from_numpy(_rows(kind, batch, random))
    if kind == "minimum-norm":
        return pool, torch.zeros(batch, 1000, dtype=pool.dtype)
    shares = random.dirichlet(np.full(pool.shape[-2], 0.05), batch)  # of few rows
    query = times(torch.from_numpy(shares), pool)
    noise = random.standard_normal(query.shape)
    return pool, query + 0.1 * torch.from_numpy(noise)


def _rows(kind: str, batch: int, random: np.random.Generator) -> np.ndarray:
    normal = random.standard_normal
    rows: np.ndarray = normal((batch, 200, 300))
    if kind == "synthetic-control":  # 50 donors in 100 periods, for all queries
        rows = random.random((50, 3)) @ normal((3, 100)).cumsum(1)
        rows += 0.1 * normal(rows.shape)
    if kind == "positive":
        rows = 0.4 * random.random((batch, 500, 60))
    if kind == "ill-conditioned":  # the condition number is 1e3
        basis, _ = np.linalg.qr(normal((60, 60)))
        rows = normal((batch, 300, 60)) * np.logspace(0.7, -2.3, 60) @ basis
    if kind == "minimum-norm":  # gradients of 64 tasks: a mean, and 20 directions
        rows = normal((batch, 64, 20)) @ normal((batch, 20, 1000))
        rows += normal((batch, 1, 1000))
    return rows
