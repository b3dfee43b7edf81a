"""The methods that select passages to finetune on among a prompt's neighbours."""

from torch import Tensor

import hullft_ops
from hullft_ops import Selection
from hullft_ops.ttft.config import TTFTConfig


def select_passages(config: TTFTConfig, pool: Tensor, queries: Tensor) -> Selection:
    """Select passages with the configuration's method; shapes as in `SelectionMethod`."""
    n_select = config.n_select
    if config.method == "hullft":
        return hullft_ops.fw_select(pool, queries, n_select, variant=config.variant)
    if config.method == "sift":
        return hullft_ops.sift_select(
            pool, queries, n_select, noise=config.noise
        ).selection
    if config.method == "knn":
        # One step on each passage, so fewer steps on a pool of fewer passages.
        return hullft_ops.knn_select(pool, queries, min(n_select, pool.shape[1]))
    return config.method(pool, queries, n_select)
