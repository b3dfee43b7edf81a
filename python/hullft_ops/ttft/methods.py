"""The methods that select passages to finetune on among a prompt's neighbours."""

import hashlib

import torch
from torch import Tensor

import hullft_ops
from hullft_ops import Selection
from hullft_ops.ttft.config import TTFTConfig

# These take one step on each passage, so on a pool of fewer passages they take fewer steps.
ONE_STEP_A_PASSAGE = ("knn", "random")


def select_passages(
    config: TTFTConfig, embeddings: Tensor, candidates: Tensor, queries: Tensor
) -> Selection:
    """Select passages with the configuration's method; shapes as in `SelectionMethod`."""
    n_select = config.n_select
    if config.method in ONE_STEP_A_PASSAGE:
        n_select = min(n_select, candidates.shape[1])
    if config.method == "hullft":
        return hullft_ops.fw_select_indexed(
            embeddings, candidates, queries, n_select, variant=config.variant
        )
    if config.method == "sift":
        return hullft_ops.sift_select_indexed(
            embeddings, candidates, queries, n_select, noise=config.noise
        ).selection
    if config.method == "knn":
        return hullft_ops.knn_select_indexed(embeddings, candidates, queries, n_select)
    if config.method == "random":
        return _draw(embeddings[candidates], queries, n_select, config.seed)
    return config.method(embeddings, candidates, queries, n_select)


def _draw(pools: Tensor, queries: Tensor, count: int, seed: int) -> Selection:
    """Draw ``count`` rows of each pool without replacement, by the seed and the prompt alone."""
    draws = [_permutation(query, pools.shape[1], seed)[:count] for query in queries]
    indices = torch.stack(draws)
    chosen = pools.gather(1, indices[..., None].expand(-1, -1, pools.shape[-1]))
    residuals = queries.double() - chosen.double().mean(1)
    correlation = torch.einsum("bkd,bd->bk", pools.double(), residuals)
    gap = correlation.amax(1) - correlation.gather(1, indices).mean(1)
    return Selection(
        indices=indices,
        weights=torch.full_like(indices, 1 / count, dtype=torch.float32),
        counts=torch.ones_like(indices),
        support_size=indices.new_full((len(indices),), count),
        residual=residuals.norm(dim=1).float(),
        gap=gap.float(),
        num_iter=indices.new_zeros(len(indices)),
    )


def _permutation(query: Tensor, size: int, seed: int) -> Tensor:
    key = str(seed).encode() + query.contiguous().numpy().tobytes()
    number = int.from_bytes(hashlib.sha256(key).digest()[:8]) >> 1
    generator = torch.Generator("cpu").manual_seed(number)
    return torch.randperm(size, generator=generator, device="cpu")
