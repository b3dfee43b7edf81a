"""Gradient Reuse on SIFT's picks in order: within each run of a text's picks, or over all of them.

After the ablation of Khamis and Maalouf, *Efficient Test-Time Finetuning of LLMs via Convex
Reconstruction and Gradient Caching*, arXiv:2605.30337.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import ClassVar, Literal

from torch import Tensor

from hullft_ops import Selection, sift_select_indexed
from hullft_ops.ttft.retrieval.support import Support

Reuse = Literal["global", "consecutive"]


def reuse_runs(picks: Iterable[int], reuse: Reuse) -> list[tuple[int, int]]:
    """Turn ordered picks, one for each optimizer step, into (example, repeats).

    "consecutive" merges equal picks that follow one another and keeps the order. "global" merges
    all picks of an example, at the place of its first pick. Anything else is a ValueError.
    """
    if reuse == "consecutive":
        return [(example, sum(1 for _ in equal)) for example, equal in groupby(picks)]
    if reuse == "global":
        return list(Counter(picks).items())
    raise ValueError(f"reuse_runs: reuse must be 'global' or 'consecutive', got {reuse!r}")


@dataclass
class PickedSift:
    """SIFT as a `SelectionMethod`. ``picks`` are its last picks in order, as store positions."""

    noise: float
    name: ClassVar[str] = "sift"
    picks: list[int] = field(default_factory=list)

    def __call__(
        self, embeddings: Tensor, candidates: Tensor, queries: Tensor, n_select: int
    ) -> Selection:
        found = sift_select_indexed(embeddings, candidates, queries, n_select, noise=self.noise)
        self.picks = candidates[0][found.picks[0]].tolist()
        return found.selection


def in_runs(support: Support, picks: list[int], reuse: Reuse) -> Support:
    """The support with its steps in the order of ``picks``, and one entry for each run."""
    runs = reuse_runs(picks, reuse)
    tokens = dict(zip(support.indices, support.input_ids, strict=True))
    return replace(
        support,
        indices=[index for index, _ in runs],
        counts=[count for _, count in runs],
        weights=[count / len(picks) for _, count in runs],
        input_ids=[tokens[index] for index, _ in runs],
    )
