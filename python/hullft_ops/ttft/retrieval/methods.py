"""The methods that choose the texts to finetune on among a prompt's neighbours."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

import hullft_ops
from hullft_ops import Selection
from hullft_ops._checks import check_integer, check_member, check_noise, check_variant
from hullft_ops.ttft.training.checks import check_choice

# Steps per prompt: selection and training hold memory for each step.
MAX_STEPS = 100_000


class SelectionMethod(Protocol):
    """Any function with this signature, or any object with such a ``__call__``, is a method.

    Reports use its ``name``, or that of the function or class. If it has a true ``one_step_each``,
    it never gets more steps than candidates.
    """

    def __call__(
        self, embeddings: Tensor, candidates: Tensor, queries: Tensor, n_select: int, /
    ) -> Selection:
        """Choose for each of B prompts.

        Args:
            embeddings: float32 ``[M, d]``, one row for every text of the datastore.
            candidates: int64 ``[B, K]``, rows of ``embeddings`` near each prompt, nearest first.
            queries: float32 ``[B, d]``, the prompts.
            n_select: optimizer steps for each prompt.

        Returns:
            A selection as `hullft_ops.fw_select_indexed` returns it for the same arguments:
            ``indices`` are different positions in ``candidates``, and each row of ``counts`` has
            no negative number and sums to ``n_select``.
        """


@dataclass(frozen=True)
class HullFT:
    """`hullft_ops.fw_select_indexed` with a ``variant`` of Frank-Wolfe."""

    variant: str = "vanilla"
    name: ClassVar[str] = "hullft"

    def __post_init__(self) -> None:
        check_variant("TestTimeFinetuner", self.variant)

    def __call__(
        self, embeddings: Tensor, candidates: Tensor, queries: Tensor, n_select: int
    ) -> Selection:
        return hullft_ops.fw_select_indexed(
            embeddings, candidates, queries, n_select, variant=self.variant
        )


@dataclass(frozen=True)
class KNN:
    """One step on each of the ``n_select`` nearest texts, or on all texts of a smaller pool."""

    name: ClassVar[str] = "knn"
    one_step_each: ClassVar[bool] = True

    def __call__(
        self, embeddings: Tensor, candidates: Tensor, queries: Tensor, n_select: int
    ) -> Selection:
        return hullft_ops.knn_select(embeddings[candidates], queries, n_select)


@dataclass(frozen=True)
class Random:
    """One step on each of ``n_select`` neighbours, drawn without replacement, or on all of fewer.

    The draw depends only on ``seed`` and the prompt.
    """

    seed: int = 0
    name: ClassVar[str] = "random"
    one_step_each: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_integer("Random", "seed", self.seed, 0)

    def __call__(
        self, embeddings: Tensor, candidates: Tensor, queries: Tensor, n_select: int
    ) -> Selection:
        drawn = [self._draw(query, candidates.shape[1], n_select) for query in queries]
        indices = torch.stack(drawn)
        count = indices.shape[1]
        x, q = embeddings[candidates].double(), queries.double()
        residuals = q - x.gather(
            1, indices[..., None].expand(-1, -1, x.shape[-1])
        ).mean(1)
        correlation = torch.einsum("bkd,bd->bk", x, residuals)
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

    def _draw(self, query: Tensor, size: int, n_select: int) -> Tensor:
        key = str(self.seed).encode() + query.contiguous().cpu().numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8]) >> 1
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randperm(size, generator=generator, device="cpu")[:n_select]


@dataclass(frozen=True)
class Sift:
    """`hullft_ops.sift_select_indexed` with its ``noise``: a step for every pick of a text.

    The steps are grouped by text, the text with the most picks first.
    """

    noise: float = 0.01
    name: ClassVar[str] = "sift"

    def __post_init__(self) -> None:
        check_noise("Sift", self.noise)

    def __call__(
        self, embeddings: Tensor, candidates: Tensor, queries: Tensor, n_select: int
    ) -> Selection:
        return hullft_ops.sift_select_indexed(
            embeddings, candidates, queries, n_select, noise=self.noise
        ).selection


def selection_method(method: "str | SelectionMethod", variant: str) -> SelectionMethod:
    """The method with that name, or the method itself."""
    own: tuple[HullFT | KNN | Random | Sift, ...] = (
        HullFT(variant),
        KNN(),
        Random(),
        Sift(),
    )
    if isinstance(method, str):
        check_choice("method", method, [one.name for one in own])
        return next(one for one in own if one.name == method)
    check_member(
        "TestTimeFinetuner", "method", method, "__call__", "a name or a SelectionMethod"
    )
    return method


def method_name(method: SelectionMethod) -> str:
    """The method's name in reports."""
    return str(
        getattr(method, "name", getattr(method, "__name__", type(method).__name__))
    )


def steps_of(method: SelectionMethod, n_select: int, pool: int) -> int:
    """How many of ``n_select`` steps the method takes on a pool of ``pool`` texts."""
    return min(n_select, pool) if getattr(method, "one_step_each", False) else n_select
