"""Gradient Reuse on SIFT's picks in their order: over a text's runs of picks, or over all of them.

After the ablation of Khamis and Maalouf, *Efficient Test-Time Finetuning of LLMs via Convex
Reconstruction and Gradient Caching*, arXiv:2605.30337.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

import hullft_ops
from hullft_ops.ttft.runs import Reuse, reuse_runs
from hullft_ops.ttft.support import Support


@dataclass
class PickedSift:
    """SIFT as a selection method, which remembers the order of its last picks."""

    noise: float
    name: ClassVar[str] = "sift"
    picks: list[int] = field(default_factory=list)

    def __call__(
        self,
        embeddings: torch.Tensor,
        candidates: torch.Tensor,
        queries: torch.Tensor,
        n_select: int,
    ) -> hullft_ops.Selection:
        """As `SelectionMethod` says; ``picks`` are then positions in the datastore."""
        found = hullft_ops.sift_select_indexed(
            embeddings, candidates, queries, n_select, noise=self.noise
        )
        self.picks = candidates[0][found.picks[0]].tolist()
        return found.selection


def in_runs(support: Support, picks: list[int], reuse: Reuse) -> Support:
    """The support with the steps in the order of ``picks``, one entry for each run of them.

    Args:
        support: every different pick once.
        picks: positions in the datastore.
        reuse: as `reuse_runs` takes it.
    """
    runs = reuse_runs(picks, reuse)
    tokens = dict(zip(support.indices, support.input_ids, strict=True))
    return replace(
        support,
        indices=[index for index, _ in runs],
        counts=[count for _, count in runs],
        weights=[count / len(picks) for _, count in runs],
        input_ids=[tokens[index] for index, _ in runs],
    )
