"""Nine kinds of least squares over the simplex, or with non-negative weights."""

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
    "unmixing",
    "large-support",
]
# Of non-negative least squares.
NNLS_KINDS = ["positive", "deconvolution"]
# Their Gram matrices are regular, as quadratic programs want them.
REGULAR = [
    "synthetic-control",
    "mixtures",
    "unmixing",
    "large-support",
    "deconvolution",
]
# More queries than of other kinds: pixels, spots.
QUERIES = {"unmixing": 30, "deconvolution": 3}


def problem(kind: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A pool [K, d], or pools [batch, K, d], and queries [batch, d], in float64.

    All problems of a batch are distinct; of text, there are six.
    """
    if kind == "text":
        pools, queries = distinct_pools(200, 384)  # the last is random
        return tiled(pools[:-1], batch).double(), tiled(queries[:-1], batch).double()
    random = np.random.default_rng(0)
    pool = torch.from_numpy(_rows(kind, batch, random))
    if kind == "minimum-norm":
        return pool, torch.zeros(batch, 1000, dtype=pool.dtype)
    few, level = {
        "unmixing": (0.3, 0.01),
        "deconvolution": (0.3, 0.3),
        "large-support": (1.0, 0.002),
    }.get(kind, (0.05, 0.1))
    batch *= QUERIES.get(kind, 1) if batch > 1 else 1
    shares = random.dirichlet(np.full(pool.shape[-2], few), batch)
    query = times(torch.from_numpy(shares), pool)
    noise = random.standard_normal(query.shape)
    return pool, query + level * torch.from_numpy(noise)


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
    if kind == "unmixing":  # the spectra of 12 materials in 200 bands, for all pixels
        rows = random.random((12, 200)).cumsum(1) / 50 + 0.3 * random.random((12, 200))
    if kind == "deconvolution":  # the expression of 2,000 genes in 30 cell types
        rows = random.gamma(0.5, 1.0, (30, 2000))
    if kind == "large-support":
        rows = normal((batch, 500, 600))
    return rows
