"""Retrieval pools of real text, larger ones grown from them, and one of random rows."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

POOLS = Path(__file__).parents[1] / "tests" / "data" / "pools_k200_d384.npz"
# Six of real text and a random one. Two more queries of the file are rows of their own pools, which
# takes no step.
DISTINCT = 7
# Sets the angle between a grown text and its original: as between neighbours in real pools.
_SPREAD = 0.5
_NOISE = 0.05


@dataclass(frozen=True)
class PoolCase:
    """A batch of queries, each with its own pool."""

    batch: int
    candidates: int = 200
    dim: int = 384
    n_select: int = 50
    dtype: str = "float32"

    def __str__(self) -> str:
        shape = f"B{self.batch}-K{self.candidates}-d{self.dim}-N{self.n_select}"
        return f"{shape}-{self.dtype}"


def cases_of_one_sweep(smoke: bool, n_select: int) -> list[PoolCase]:
    """For operators that read each pool once or twice."""
    if smoke:
        small = PoolCase(2, 30, n_select=min(n_select, 5))
        return [small, replace(small, dtype="bfloat16")]
    base = PoolCase(64, n_select=n_select)
    one = replace(base, batch=1)
    return [base, one, replace(base, dim=1024), replace(one, candidates=5000)]


def problem(case: PoolCase, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pools [batch, candidates, dim] and queries [batch, dim] in the case's dtype."""
    pools, queries = distinct_pools(case.candidates, case.dim)
    dtype = getattr(torch, case.dtype)
    pool = tiled(pools.to(dtype), case.batch).to(device)
    return pool, tiled(queries.to(dtype), case.batch).to(device)


@lru_cache(maxsize=2)
def distinct_pools(candidates: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pools float32 [DISTINCT, candidates, dim] and queries [DISTINCT, dim], nearest first.

    At 200 candidates and 384 dimensions all but the last are real text embeddings, of unit norm.
    Fewer candidates are the nearest of them. Additional candidates are real ones moved by Gaussian
    noise. More dimensions come from a random isometry, which keeps every inner product, and a
    little Gaussian noise, which gives full rank. A solve of real pools takes every step and holds
    11 to 28 candidates. The last pool is Gaussian and its query is the mean of its rows: there, a
    solve holds as many candidates as it may.

    Raises:
        ValueError: fewer dimensions than real embeddings have.
    """
    with np.load(POOLS) as file:
        pool, query = file["pool"].astype(np.float64), file["query"].astype(np.float64)
    if dim < pool.shape[-1]:
        raise ValueError(
            f"distinct_pools: dim must be at least {pool.shape[-1]}, got {dim}"
        )
    distance = np.linalg.norm(pool - query[:, None], axis=-1).min(axis=1)
    pool, query = pool[distance > 0], query[distance > 0]
    random = np.random.default_rng(0)
    pool = _with_candidates(pool, candidates, random)
    if dim > pool.shape[-1]:
        pool, query = _with_dimensions(pool, query, dim, random)
    gaussian = _unit(random.standard_normal((1, candidates, dim)))
    pool = np.concatenate([pool, gaussian])
    query = np.concatenate([query, gaussian.mean(axis=1)])
    order = np.argsort(-np.einsum("bkd,bd->bk", pool, query), axis=1, kind="stable")
    pool = np.take_along_axis(pool, order[..., None], axis=1)
    return torch.from_numpy(pool.astype(np.float32)), torch.from_numpy(
        query.astype(np.float32)
    )


def real_texts() -> torch.Tensor:
    """float64 [M, 384]: embeddings of the distinct texts of the real pools, in a fixed order."""
    with np.load(POOLS) as file:
        return torch.from_numpy(
            np.unique(file["pool"].reshape(-1, file["pool"].shape[-1]), axis=0)
        ).double()


def tiled(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """[batch, ...]: the distinct pools or queries, repeated, each in its own memory."""
    repeats = -(-batch // len(tensor))
    return tensor.repeat(repeats, *[1] * (tensor.ndim - 1))[:batch].contiguous()


def _with_candidates(
    pool: np.ndarray, candidates: int, random: np.random.Generator
) -> np.ndarray:
    real = pool.shape[1]
    if candidates <= real:
        return pool[:, :candidates]
    parents = pool[:, random.integers(real, size=candidates - real)]
    noise = _SPREAD * random.standard_normal(parents.shape) / np.sqrt(pool.shape[-1])
    return np.concatenate([pool, _unit(parents + noise)], axis=1)


def _with_dimensions(
    pool: np.ndarray, query: np.ndarray, dim: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    isometry, _ = np.linalg.qr(random.standard_normal((dim, pool.shape[-1])))
    noise = _NOISE * random.standard_normal((*pool.shape[:2], dim)) / np.sqrt(dim)
    return _unit(pool @ isometry.T + noise), _unit(query @ isometry.T)


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit
