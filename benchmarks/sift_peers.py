"""Timing activeft's SIFT beside ours, in both ways of using it."""

import numpy as np
import torch

import hullft_ops
from benchmarks import peers
from benchmarks.recorder import Recorder

_FLOAT32_ROUNDING = 1e-4


def time_activeft(
    recorder: Recorder,
    pool: torch.Tensor,
    query: torch.Tensor,
    n_select: int,
    *,
    noise: float = 0.01,
    scale: int,
) -> None:
    """Times activeft on pool [K, d] and query [d], after checking that its variances equal ours.

    It takes one query at a time, in float32. All queries cost the same.

    Args:
        scale: the number of queries that one call stands for.
    """
    variance = hullft_ops.sift_select(
        pool, query, n_select, noise=noise
    ).variance.numpy()

    def within() -> np.ndarray:
        return peers.sift(pool, query, n_select, noise=noise)[1].numpy()

    retriever = peers.sift_retriever(pool.numpy(), noise)

    def documented() -> np.ndarray:
        targets = query.numpy()[None]
        values: np.ndarray = retriever.search(
            targets, N=n_select, K=len(pool), threads=2
        )[0]
        return values

    for name, minus_variance in (("SIFT", within), ("Retriever", documented)):
        assert np.abs(variance + minus_variance()).max() < _FLOAT32_ROUNDING
        recorder.peer(f"activeft {name}", minus_variance, scale=scale)
